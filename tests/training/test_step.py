"""The step: counts first, gradients added; traps 2, 3 and 10."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.objective.terms import Term
from kd_jax.parallel.base import Parallel, parallel
from kd_jax.signals.online import Online
from kd_jax.signals.topk import TopK
from kd_jax.training.step import count_tokens, fused_head_sums, init_state, loss_fn, train_step
from kd_jax.types import Batch, Head

B, S, T, V = 16, 5, 6, 19
MODEL = EncoderDecoder(encoder_layers=1, decoder_layers=1, d_model=16, heads=2, d_ff=16, dropout=0.2).build(V)
SIGNAL = TopK(k=4)
TERMS = {
    "ce": Term(cross_entropy, weight=0.3, options={"label_smoothing": 0.1}),
    "kd": Term(forward_kl, weight=0.7, signal=SIGNAL),
}
TX = optax.sgd(1.0)


def make_batch(seed: int = 0) -> Batch:
    """Uneven masks, one row with nothing in it, a random teacher."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T)[None] < rng.integers(1, T + 1, (B, 1))
    mask[3] = False
    payload = SIGNAL.reduce(jnp.asarray(rng.normal(size=(B * T, V)), jnp.float32))
    payload = {name: np.asarray(x).reshape(B, T, *x.shape[1:]) for name, x in payload.items()}
    ids = rng.integers(0, V, (3, B, T)).astype(np.int32)
    return Batch(
        index_B=np.arange(B, dtype=np.int32),
        source_BS=ids[0, :, :S],
        source_mask_BS=np.arange(S)[None] < rng.integers(1, S + 1, (B, 1)),
        inputs_BT=ids[1],
        targets_BT=ids[2],
        mask_BT=mask,
        weight_B=np.ones(B, np.float32),
        payload={SIGNAL.name: payload},
    )


def after_one_step(spread: Parallel, batch: Batch, microbatches: int = 1):
    """(parameters, mean of every Sum) after one step of plain gradient descent."""
    params = MODEL.init(jax.random.key(0))
    state = spread.replicate(init_state(jax.random.key(1), params, TX))
    step = spread.spread(functools.partial(train_step, model=MODEL, terms=TERMS, tx=TX, microbatches=microbatches))
    state, sums = step(state, spread.shard(batch))
    host = jax.device_get(spread.first((state.params, sums)))
    return host[0], {name: one.mean() for name, one in host[1].items()}


def test_one_and_eight_devices_one_and_four_microbatches_agree():
    batch = make_batch()
    want = after_one_step(parallel("jit"), batch)
    assert parallel("pmap").devices == 8
    for got in (
        after_one_step(parallel("pmap"), batch),
        after_one_step(parallel("jit"), batch, microbatches=4),
        after_one_step(parallel("pmap"), batch, microbatches=2),
    ):
        chex.assert_trees_all_close(got, want, atol=1e-6, rtol=1e-5)


def test_masked_positions_change_no_bit():
    batch = make_batch()
    junk = np.where(batch.mask_BT, batch.targets_BT, 7).astype(np.int32)
    other = {
        k: np.where(batch.mask_BT.reshape(B, T, *[1] * (v.ndim - 2)), v, v[::-1])
        for k, v in batch.payload[SIGNAL.name].items()
    }
    changed = batch._replace(targets_BT=junk, payload={SIGNAL.name: other})
    chex.assert_trees_all_equal(after_one_step(parallel("jit"), changed), after_one_step(parallel("jit"), batch))


@pytest.mark.parametrize("signal", [SIGNAL, Online()], ids=["topk", "online"])
def test_1e4_in_masked_logits_changes_no_bit_and_the_end_is_learnt(signal):
    """Trap 2: with an identity for a head hidden states are logits; EOS has pad's id, the mask tells them apart."""
    rng, last = np.random.default_rng(0), 4  # the end stands at position 4, pads of the same id after it
    mask = np.arange(9) <= last
    terms = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=signal)}
    student, teacher = rng.normal(size=(2, 9, V)).astype(np.float32)
    targets = jnp.asarray(np.where(np.arange(9) < last, rng.integers(1, V, 9), 0), jnp.int32)

    @jax.jit
    def value_and_grad(student, teacher):
        rows = {"targets": targets, "mask": jnp.asarray(mask), "weight": jnp.ones(9)}
        fixed = {"step": jnp.int32(0), "teacher_head": Head(jnp.eye(V))}
        cached = {} if signal == Online() else {signal.name: signal.reduce(teacher)}
        rows |= {"payload": cached} | ({} if cached else {"teacher_hidden": teacher})
        total = lambda student: fused_head_sums(terms, student, Head(jnp.eye(V)), rows, fixed, 4)[0]  # noqa: E731
        return jax.value_and_grad(total)(student)

    junk = np.where(mask[:, None], 0.0, 1e4).astype(np.float32) * rng.integers(-1, 2, (9, V))
    want = value_and_grad(student, teacher)
    chex.assert_trees_all_equal(value_and_grad(student + junk, teacher - junk), want)
    assert np.abs(want[1][last]).max() > 1e-3 and not np.any(want[1][last + 1 :])


def test_all_masked_batch_gives_zero_and_finite_gradients():
    batch = make_batch()
    batch = batch._replace(mask_BT=np.zeros_like(batch.mask_BT))
    params, means = after_one_step(parallel("jit"), batch)
    chex.assert_trees_all_equal(params, jax.device_get(MODEL.init(jax.random.key(0))))
    assert means["loss"] == 0


def test_dropout_follows_the_example_not_its_place():
    batch = make_batch()
    order = np.random.default_rng(1).permutation(B)
    shuffled = jax.tree.map(lambda x: x[order], batch)
    chex.assert_trees_all_close(
        after_one_step(parallel("jit"), shuffled), after_one_step(parallel("jit"), batch), atol=1e-6, rtol=1e-5
    )


def test_student_equal_to_teacher_has_no_kd_loss():
    batch, params = make_batch(), MODEL.init(jax.random.key(0))
    logits = MODEL.head(params).logits(MODEL.apply(params, batch))
    signal = TopK(k=V)
    payload = {k: v.reshape(B, T, *v.shape[1:]) for k, v in signal.reduce(logits.reshape(-1, V)).items()}
    batch = batch._replace(payload={signal.name: payload})
    loss, gradient = jax.value_and_grad(loss_fn, has_aux=True)(
        (params, {}), batch, count_tokens(batch), None, model=MODEL, terms={"kd": Term(forward_kl, signal=signal)}
    )
    assert abs(loss[0]) < 1e-6
    assert optax.tree.norm(gradient) < 1e-2  # the stored logits are float16


@pytest.mark.parametrize("microbatches", [1, 4])
def test_the_reported_terms_add_up_to_the_loss(microbatches):
    _, means = after_one_step(parallel("jit"), make_batch(), microbatches)
    want = sum(term.weight * means[name] for name, term in TERMS.items())
    np.testing.assert_allclose(means["loss"], want, rtol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_step_lowers_for_every_platform(platform):
    state = init_state(jax.random.key(1), MODEL.init(jax.random.key(0)), TX)
    step = jax.jit(functools.partial(train_step, model=MODEL, terms=TERMS, tx=TX))
    assert jax.export.export(step, platforms=[platform])(state, make_batch()).platforms == (platform,)
