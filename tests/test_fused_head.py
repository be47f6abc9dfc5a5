"""The fused head equals the plain path, in value and in both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax import fused_head as module
from kd_jax.fused_head import chunk_tokens, fused_head, map_head
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.types import Head


def objective(logits_NV, rows, fixed=None):
    targets_N, mask_N = rows
    loss_N = jnp.where(mask_N, cross_entropy(logits_NV, targets_N, 0.1), 0.0)
    return loss_N.sum(), {"count": mask_N.sum(dtype=jnp.int32)}


def make(n, d, v, seed=0):
    rng = np.random.default_rng(seed)
    hidden, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((n, d), (d, v)))
    return hidden, head, (jnp.asarray(rng.integers(0, v, n), jnp.int32), jnp.asarray(rng.random(n) < 0.7))


@given(st.integers(1, 50), st.integers(1, 9), st.integers(2, 40))
@settings(max_examples=15, deadline=None)
def test_equals_plain(n, d, v):
    hidden, head, rows = make(n, d, v)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", 4 * 16 * v)  # chunks of at most 16 tokens; the last is seldom full
        fused = lambda h, w: fused_head(objective, h, Head(w), rows)  # noqa: E731
        got = jax.value_and_grad(lambda h, w: 3.0 * fused(h, w)[0], argnums=(0, 1))(hidden, head)
        count = fused(hidden, head)[1]["count"]
    want = jax.value_and_grad(lambda h, w: 3.0 * objective(h @ w, rows)[0], argnums=(0, 1))(hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)
    assert count == rows[1].sum()


def test_sums_do_not_reach_the_gradient():
    hidden, head, rows = make(12, 4, 9)
    with_sum = lambda x, r, _: (objective(x, r)[0], (x**2).sum())  # noqa: E731
    got = jax.grad(lambda h: fused_head(with_sum, h, Head(head), rows)[0])(hidden)
    np.testing.assert_allclose(got, jax.grad(lambda h: objective(h @ head, rows)[0])(hidden), atol=1e-5)


def test_map_head_equals_plain(monkeypatch):
    hidden, head, _ = make(21, 4, 9)
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 8 * 9)
    np.testing.assert_allclose(map_head(lambda x, _: x.max(-1), hidden, Head(head)), (hidden @ head).max(-1), rtol=1e-5)


@given(st.integers(1, 100_000), st.integers(2, 300_000))
def test_chunks_stay_within_bounds(tokens, vocab_size):
    chunk = chunk_tokens(tokens, vocab_size)
    assert 1 <= chunk <= tokens
    assert chunk <= 8 or 4 * (chunk - 8) * vocab_size <= module.CHUNK_BYTES


def test_no_array_of_all_logits():
    tokens, vocab_size = 4096, 32_000
    hidden, head = jnp.zeros((tokens, 8)), jnp.zeros((8, vocab_size))
    rows = jnp.zeros(tokens, jnp.int32), jnp.ones(tokens, bool)
    step = jax.jit(jax.grad(lambda h, w: fused_head(objective, h, Head(w), rows)[0], argnums=(0, 1)))
    used = step.lower(hidden, head).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * tokens * vocab_size / 2
