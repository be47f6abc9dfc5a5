"""The fused head equals the unfused objective, in value and in both gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.base import Head
from kd_jax.objective import fused_head as module
from kd_jax.objective.fused_head import chunk_tokens, fused_head, map_head
from kd_jax.objective.terms import StepInputs, Term, TokenInputs, total_loss
from kd_jax.signals.topk import TopK


def objective(logits_NV, tokens, shared=None):
    targets_N, mask_N = tokens
    loss_N = jnp.where(mask_N, cross_entropy(logits_NV, targets_N, 0.1), 0.0)
    return loss_N.sum(), {"count": mask_N.sum(dtype=jnp.int32)}


def make(n, d, v, seed=0):
    rng = np.random.default_rng(seed)
    hidden, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((n, d), (d, v)))
    return hidden, head, (jnp.asarray(rng.integers(0, v, n), jnp.int32), jnp.asarray(rng.random(n) < 0.7))


@given(st.integers(1, 50), st.integers(1, 9), st.integers(2, 40))
@settings(max_examples=8, deadline=None)
def test_value_and_gradients_equal_the_unfused_objective(n, d, v):
    hidden, head, tokens = make(n, d, v)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", 4 * 16 * v)  # chunks of at most 16 tokens; the last is padded
        fused = lambda h, w: fused_head(objective, h, Head(w), tokens)  # noqa: E731
        got = jax.jit(jax.value_and_grad(lambda h, w: 3.0 * fused(h, w)[0], argnums=(0, 1)))(hidden, head)
        count = jax.jit(fused)(hidden, head)[1]["count"]
    want = jax.jit(jax.value_and_grad(lambda h, w: 3.0 * objective(h @ w, tokens)[0], argnums=(0, 1)))(hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)
    assert count == tokens[1].sum()


def test_sums_do_not_reach_the_gradient():
    hidden, head, tokens = make(12, 4, 9)
    with_sum = lambda x, r, _: (objective(x, r)[0], (x**2).sum())  # noqa: E731
    got = jax.grad(lambda h: fused_head(with_sum, h, Head(head), tokens)[0])(hidden)
    np.testing.assert_allclose(got, jax.grad(lambda h: objective(h @ head, tokens)[0])(hidden), atol=1e-5)


def test_map_head_equals_the_function_of_all_logits(monkeypatch):
    hidden, head, _ = make(21, 4, 9)
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 8 * 9)
    np.testing.assert_allclose(map_head(lambda x, _: x.max(-1), hidden, Head(head)), (hidden @ head).max(-1), rtol=1e-5)


@given(st.integers(1, 100_000), st.integers(2, 300_000))
def test_chunks_stay_within_bounds(num_tokens, vocab_size):
    chunk = chunk_tokens(num_tokens, vocab_size)
    assert 1 <= chunk <= num_tokens
    assert chunk <= 8 or 4 * (chunk - 8) * vocab_size <= module.CHUNK_BYTES


def test_there_is_no_array_of_all_logits():
    num_tokens, vocab_size = 4096, 32_000
    hidden, head = jnp.zeros((num_tokens, 8)), jnp.zeros((8, vocab_size))
    tokens = jnp.zeros(num_tokens, jnp.int32), jnp.ones(num_tokens, bool)
    step = jax.jit(jax.grad(lambda h, w: fused_head(objective, h, Head(w), tokens)[0], argnums=(0, 1)))
    used = step.lower(hidden, head).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * num_tokens * vocab_size / 2


SIGNAL = TopK(k=4)
TERMS = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=SIGNAL)}
TOTAL = functools.partial(total_loss, TERMS)


def topk_problem(n, d, v, dtype=jnp.float32):
    hidden, head, (targets, mask) = make(n, d, v)
    payload = {SIGNAL.name: SIGNAL.reduce(jnp.asarray(np.random.default_rng(1).normal(size=(n, v)), jnp.float32))}
    return hidden.astype(dtype), Head(head.astype(dtype)), TokenInputs(targets, mask, jnp.ones(n), payload)


def value_and_gradients(hidden, head, tokens, chunk=8):
    loss = lambda h, w: fused_head(TOTAL, h, w, tokens, StepInputs(), chunk)[0]  # noqa: E731
    return jax.value_and_grad(loss, (0, 1))(hidden, head)


def test_sharded_tokens_and_a_sharded_vocabulary_give_the_same_numbers():
    """jit with NamedSharding: over the batch, and over the vocabulary of the output matrix."""
    hidden, head, tokens = topk_problem(32, 8, 64)
    want = value_and_gradients(hidden, head, tokens)
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto, AxisType.Auto))
    put = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))  # noqa: E731
    sharded = put(hidden, "data"), jax.tree.map(lambda x: put(x, None, "model"), head), put(tokens, "data")
    got = jax.jit(value_and_gradients, static_argnums=3)(*sharded, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_pmapped_shards_add_up():
    hidden, head, tokens = topk_problem(32, 8, 64)
    want = value_and_gradients(hidden, head, tokens)
    split = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), (hidden, tokens))
    value, (d_hidden, d_head) = jax.pmap(value_and_gradients, in_axes=(0, None, 0), static_broadcasted_argnums=3)(
        split[0], head, split[1], 8
    )
    got = value.sum(), (d_hidden.reshape(32, 8), jax.tree.map(lambda x: x.sum(0), d_head))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_remat_changes_no_number():
    hidden, head, tokens = topk_problem(20, 8, 31)
    loss = lambda h, w: fused_head(TOTAL, jnp.tanh(h), w, tokens, StepInputs(), 8)[0]  # noqa: E731
    got, want = (jax.jit(jax.grad(f, (0, 1)))(hidden, head) for f in (jax.checkpoint(loss), loss))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_bfloat16_inputs_have_float32_sums_and_bfloat16_gradients():
    hidden, head, tokens = topk_problem(64, 16, 40, jnp.bfloat16)
    value, (d_hidden, d_head) = jax.jit(value_and_gradients, static_argnums=3)(hidden, head, tokens, 8)
    assert value.dtype == jnp.float32 and d_hidden.dtype == d_head.kernel_DV.dtype == jnp.bfloat16
    exact = value_and_gradients(hidden.astype(jnp.float32), Head(head.kernel_DV.astype(jnp.float32)), tokens)
    np.testing.assert_allclose(value, exact[0], rtol=1e-2)
    error = jnp.abs(d_head.kernel_DV.astype(jnp.float32) - exact[1][1].kernel_DV).max()
    assert error < 0.02 * jnp.abs(exact[1][1].kernel_DV).max()


def test_temporary_memory_does_not_grow_with_the_tokens():
    """Except for the gradient of the hidden states, which is N x D."""

    def used(num_tokens, width=8, vocab_size=32_000):
        hidden = jnp.zeros((num_tokens, width))
        tokens = jnp.zeros(num_tokens, jnp.int32), jnp.ones(num_tokens, bool)
        loss = lambda h, w: fused_head(objective, h, Head(w), tokens)[0]  # noqa: E731
        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return step.lower(hidden, jnp.zeros((width, vocab_size))).compile().memory_analysis().temp_size_in_bytes

    assert used(8192) < 1.05 * used(2048) + 4 * 8192 * 8 * 4


def test_the_chunk_size_changes_no_number():
    hidden, head, tokens = topk_problem(21, 4, 9)
    want = value_and_gradients(hidden, head, tokens, 0)
    for chunk in (1, 5, 21, 100):
        got = value_and_gradients(hidden, head, tokens, chunk)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@pytest.mark.parametrize("num_tokens", [8, 21, 24])
@pytest.mark.parametrize("soft_cap", [0.0, 3.0])
def test_every_chunk_adds_to_the_gradient_of_the_bias(num_tokens, soft_cap):
    """One chunk, three with a padded last one, three full ones; two columns of the head only pad the vocabulary."""
    hidden, kernel, tokens = make(num_tokens, 4, 13)
    tokens = tokens[0] % 11, tokens[1]
    head = Head(kernel, jnp.linspace(-2.0, 2.0, 13), soft_cap, vocab_size=11)

    def unfused(hidden, kernel, bias):
        logits = hidden @ kernel[:, :11] + bias[None, :11]
        return objective(soft_cap * jnp.tanh(logits / soft_cap) if soft_cap else logits, tokens)[0]

    got = jax.grad(lambda h, w: fused_head(objective, h, w, tokens, None, 8)[0], (0, 1))(hidden, head)
    want = jax.grad(unfused, (0, 1, 2))(hidden, kernel, head.bias_V)
    for ours, expected in zip((got[0], got[1].kernel_DV, got[1].bias_V), want, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_kernel_gradient_is_the_same_in_strips(monkeypatch):
    hidden, head, tokens = topk_problem(24, 6, 9)
    want = value_and_gradients(hidden, head, tokens)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    monkeypatch.setattr(module, "STRIP_BYTES", 4 * 6 * 4)  # strips of four columns, the last of one
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), value_and_gradients(hidden, head, tokens), want
    )
