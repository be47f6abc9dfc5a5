"""The network: causality, padding, segments, the cache, dropout's keys."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.types import Inputs, Tokens
from tests.batches import random_examples, to_batch

S, T, V = 5, 6, 13
CONFIG = EncoderDecoder(encoder_layers=2, decoder_layers=2, d_model=16, heads=2, d_ff=24, dropout=0.3)
MODEL = CONFIG.build(V)
PARAMS = MODEL.init(jax.random.key(0))
INPUTS = jax.tree.map(jnp.asarray, to_batch(random_examples(0, [(5, T), (3, T), (1, T)], V)).inputs)


def with_ids(inputs, stack, ids_BT):
    return inputs._replace(**{stack: inputs._asdict()[stack]._replace(ids_BT=ids_BT)})


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_token_sees_its_past_and_the_source_but_not_its_future(norm):
    model = dataclasses.replace(CONFIG, norm=norm).build(V)
    params = model.init(jax.random.key(0))
    before = model.apply(params, INPUTS)
    for t in range(T):
        after = model.apply(params, with_ids(INPUTS, "decoder", INPUTS.decoder.ids_BT.at[:, t].set(0)))
        moved = jnp.abs(after - before).max((0, 2)) > 0
        assert moved.tolist() == [False] * t + [True] * (T - t)
    other = model.apply(params, with_ids(INPUTS, "encoder", INPUTS.encoder.ids_BT.at[:, 0].set(0)))
    assert (jnp.abs(other - before).max(-1) > 0).all()


def test_padding_of_the_source_changes_nothing():
    want = MODEL.apply(PARAMS, INPUTS)
    junk = jnp.where(INPUTS.encoder.segment_BT > 0, INPUTS.encoder.ids_BT, 7)
    chex.assert_trees_all_equal(MODEL.apply(PARAMS, with_ids(INPUTS, "encoder", junk)), want)
    wide = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 3)]), INPUTS.encoder)
    chex.assert_trees_all_close(MODEL.apply(PARAMS, INPUTS._replace(encoder=wide)), want, atol=1e-5)


def packed(pairs: list[Tokens], width: int) -> Tokens:
    """One-row tokens side by side in one row: positions restart, segments are numbered from 1."""
    numbered = [tokens._replace(segment_BT=tokens.segment_BT * i) for i, tokens in enumerate(pairs, 1)]
    return jax.tree.map(lambda *parts: np.pad(np.concatenate(parts, 1), [(0, 0), (0, width)])[:, :width], *numbered)


def test_segments_of_one_row_have_the_hidden_states_that_they_have_alone():
    """Trap 11; both stacks hold both examples, whose prompts and completions differ in length."""
    examples = random_examples(3, [(4, 3), (2, 5)], V)
    alone = [to_batch([example]).inputs for example in examples]
    stacks = {stack: packed([inputs._asdict()[stack] for inputs in alone], 9) for stack in ("encoder", "decoder")}
    together = MODEL.apply(PARAMS, Inputs(np.zeros(1, np.int32), **stacks))
    np.testing.assert_allclose(together[:, :3], MODEL.apply(PARAMS, alone[0]), atol=1e-5)
    np.testing.assert_allclose(together[:, 3:8], MODEL.apply(PARAMS, alone[1]), atol=1e-5)
    junk = jax.tree.map(jnp.asarray, stacks["encoder"])
    junk = junk._replace(ids_BT=junk.ids_BT.at[:, 0].set(7))  # of the first example
    moved = MODEL.apply(PARAMS, Inputs(np.zeros(1, np.int32), stacks["decoder"], junk)) != together
    assert moved[0, :3].all() and not moved[0, 3:8].any()


def decoded(model, params, inputs):
    """Logits of one token after another, [B, T, V]."""
    cache, logits = model.prefill(params, inputs, inputs.decoder.ids_BT.shape[1]), []
    for token_B in inputs.decoder.ids_BT.T:
        logits_BV, cache = model.step(params, cache, token_B)
        logits.append(logits_BV)
    return jnp.stack(logits, 1)


def test_step_by_step_equals_teacher_forced():
    want = MODEL.head(PARAMS).logits(MODEL.apply(PARAMS, INPUTS))
    np.testing.assert_allclose(decoded(MODEL, PARAMS, INPUTS), want, atol=1e-4)


def test_a_cache_repeats_its_rows_and_a_row_goes_on_from_another():
    """Repeated twice, read apart, then both rows of each example go on from its second one."""
    inputs = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), INPUTS)
    other = inputs.decoder.ids_BT.at[::2, 1].set(7)
    cache = MODEL.prefill(PARAMS, INPUTS, T).repeat(2)
    for token_B in other.T[:3]:
        _, cache = MODEL.step(PARAMS, cache, token_B)
    logits, _ = MODEL.step(PARAMS, cache.reorder(jnp.asarray([1, 1, 3, 3, 5, 5])), inputs.decoder.ids_BT[:, 3])
    want = MODEL.head(PARAMS).logits(MODEL.apply(PARAMS, inputs))[:, 3]
    np.testing.assert_allclose(logits, want, atol=1e-4)


def test_dropout_belongs_to_the_example():
    key = jax.random.key(5)
    whole = MODEL.apply(PARAMS, INPUTS, key)
    assert not jnp.allclose(whole, MODEL.apply(PARAMS, INPUTS))
    alone = MODEL.apply(PARAMS, jax.tree.map(lambda x: x[1:2], INPUTS), key)
    np.testing.assert_allclose(alone[0], whole[1], atol=1e-5)
    other = MODEL.apply(PARAMS, INPUTS._replace(index_B=INPUTS.index_B + 1), key)
    assert not jnp.allclose(whole, other)


def test_taps_are_what_the_layers_hold():
    hidden, taps = MODEL.taps(PARAMS, INPUTS)
    np.testing.assert_allclose(hidden, MODEL.apply(PARAMS, INPUTS), atol=1e-6)
    lengths = {"encoder": S, "decoder": T}
    names = {f"{stack}_{i}.{kind}": lengths[stack] for stack in lengths for i in (0, 1) for kind in ("hidden", *"qkv")}
    assert {name: x.shape for name, x in taps.items()} == {name: (3, length, 16) for name, length in names.items()}
    norm = PARAMS["decoder_norm"]["scale"]
    last = taps["decoder_1.hidden"]
    rms = jnp.sqrt((last**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(last / rms * norm[None, None], hidden, atol=1e-5)


def test_bad_shapes_are_refused():
    for config, field in ((EncoderDecoder(heads=3), "heads"), (EncoderDecoder(dropout=1.0), "dropout")):
        with pytest.raises(KdError, match=rf"model\.{field}"):
            config.build(V)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform):
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), INPUTS)
    exported = jax.export.export(jax.jit(MODEL.apply), platforms=[platform])(PARAMS, inputs)
    assert exported.platforms == (platform,)


HEADS = [{"tied": False}, {"head_bias": True}, {"soft_cap": 3.0}, {"vocab_multiple": 16}]
HEADS += [{"tied": False, "head_bias": True, "soft_cap": 3.0, "vocab_multiple": 16}]


@pytest.mark.parametrize("fields", HEADS, ids=str)
def test_heads_of_every_kind_give_v_logits_and_decode_as_they_train(fields):
    """A padded vocabulary's pads get no gradient; step by step decoding sees the logits of the whole sentence."""
    model = dataclasses.replace(CONFIG, **fields).build(V)
    params = model.init(jax.random.key(0))
    logits = model.head(params).logits(model.apply(params, INPUTS))
    assert logits.shape[-1] == V
    if "soft_cap" in fields:
        assert jnp.abs(logits).max() < 3.0
    np.testing.assert_allclose(decoded(model, params, INPUTS), logits, atol=1e-4)
    if "vocab_multiple" in fields:
        loss = lambda p: jax.nn.logsumexp(model.head(p).logits(model.apply(p, INPUTS)), axis=-1).sum()  # noqa: E731
        gradient = jax.grad(loss)(params)
        assert gradient["embedding"].shape[0] % 16 == 0 and not gradient["embedding"][V:].any()
