"""The network: causality, padding, the cache, dropout's keys."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.types import Batch

B, S, T, V = 3, 5, 6, 13
CONFIG = EncoderDecoder(encoder_layers=2, decoder_layers=2, d_model=16, heads=2, d_ff=24, dropout=0.3)
MODEL = CONFIG.build(V)
PARAMS = MODEL.init(jax.random.key(0))


def make_batch():
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(1, V, (3, B, T)), jnp.int32)
    mask = jnp.arange(S)[None] < jnp.asarray([[5], [3], [1]])
    return Batch(jnp.arange(B), ids[0, :, :S], mask, ids[1], ids[2], jnp.ones((B, T), bool), jnp.ones(B), {})


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_token_sees_its_past_and_the_source_but_not_its_future(norm):
    model = EncoderDecoder(2, 2, 16, 2, 24, 0.0, norm).build(V)
    params, batch = model.init(jax.random.key(0)), make_batch()
    before = model.apply(params, batch)
    for t in range(T):
        after = model.apply(params, batch._replace(inputs_BT=batch.inputs_BT.at[:, t].set(0)))
        moved = jnp.abs(after - before).max((0, 2)) > 0
        assert moved.tolist() == [False] * t + [True] * (T - t)
    other = model.apply(params, batch._replace(source_BS=batch.source_BS.at[:, 0].set(0)))
    assert (jnp.abs(other - before).max(-1) > 0).all()


def test_padding_of_the_source_changes_nothing():
    batch = make_batch()
    junk = jnp.where(batch.source_mask_BS, batch.source_BS, 7)
    chex.assert_trees_all_equal(MODEL.apply(PARAMS, batch._replace(source_BS=junk)), MODEL.apply(PARAMS, batch))
    wide = batch._replace(
        source_BS=jnp.pad(batch.source_BS, [(0, 0), (0, 3)]),
        source_mask_BS=jnp.pad(batch.source_mask_BS, [(0, 0), (0, 3)]),
    )
    chex.assert_trees_all_close(MODEL.apply(PARAMS, wide), MODEL.apply(PARAMS, batch), atol=1e-5)


def test_step_by_step_equals_teacher_forced():
    batch = make_batch()
    want = MODEL.head(PARAMS).logits(MODEL.apply(PARAMS, batch))
    cache = MODEL.start(PARAMS, batch.source_BS, batch.source_mask_BS, T)
    for t in range(T):
        logits, cache = MODEL.decode_step(PARAMS, cache, batch.inputs_BT[:, t], jnp.int32(t))
        np.testing.assert_allclose(logits, want[:, t], atol=1e-4)


def test_dropout_belongs_to_the_example():
    batch, key = make_batch(), jax.random.key(5)
    whole = MODEL.apply(PARAMS, batch, key)
    assert not jnp.allclose(whole, MODEL.apply(PARAMS, batch))
    alone = MODEL.apply(PARAMS, jax.tree.map(lambda x: x[1:2], batch), key)
    np.testing.assert_allclose(alone[0], whole[1], atol=1e-5)
    other = MODEL.apply(PARAMS, batch._replace(index_B=batch.index_B + 1), key)
    assert not jnp.allclose(whole, other)


def test_bad_shapes_are_refused():
    for config, field in ((EncoderDecoder(heads=3), "heads"), (EncoderDecoder(dropout=1.0), "dropout")):
        with pytest.raises(KdError, match=field):
            config.build(V)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform):
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_batch())
    exported = jax.export.export(jax.jit(MODEL.apply), platforms=[platform])(PARAMS, batch)
    assert exported.platforms == (platform,)


HEADS = [{"tied": False}, {"head_bias": True}, {"soft_cap": 3.0}, {"vocab_multiple": 16}]
HEADS += [{"tied": False, "head_bias": True, "soft_cap": 3.0, "vocab_multiple": 16}]


@pytest.mark.parametrize("fields", HEADS, ids=str)
def test_heads_of_every_kind_give_v_logits_and_decode_as_they_train(fields):
    """A padded vocabulary's pads get no gradient; step by step decoding sees the logits of the whole sentence."""
    model = dataclasses.replace(CONFIG, **fields).build(V)
    params, batch = model.init(jax.random.key(0)), make_batch()
    logits = model.head(params).logits(model.apply(params, batch))
    assert logits.shape[-1] == V
    if "soft_cap" in fields:
        assert jnp.abs(logits).max() < 3.0
    cache = model.start(params, batch.source_BS, batch.source_mask_BS, T)
    for t in range(T):
        step, cache = model.decode_step(params, cache, batch.inputs_BT[:, t], jnp.int32(t))
        np.testing.assert_allclose(step, logits[:, t], atol=1e-4)
    if "vocab_multiple" in fields:
        loss = lambda p: jax.nn.logsumexp(model.head(p).logits(model.apply(p, batch)), axis=-1).sum()  # noqa: E731
        gradient = jax.grad(loss)(params)
        assert gradient["embedding"].shape[0] % 16 == 0 and not gradient["embedding"][V:].any()
