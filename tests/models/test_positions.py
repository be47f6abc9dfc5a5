"""Sinusoids, rotary embeddings and relative buckets against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.models.positions import Rotary, apply_rotary, relative_buckets, rotary_embedding, sinusoids

ROTARY = rotary_embedding(jnp.arange(40)[None], 6, 100.0)
Q_1d, K_1d = (jnp.asarray(np.random.default_rng(i).standard_normal((1, 1, 1, 6)), jnp.float32) for i in (0, 1))


def test_sinusoids_follow_the_papers_formula():
    t, i = np.arange(9)[:, None], np.arange(3)[None]
    angles = t / 10_000 ** (2 * i / 6)
    np.testing.assert_allclose(sinusoids(9, 6), np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=1e-6)


def test_rotation_is_a_complex_product():
    """(x_i + j x_{i + d/2}) e^(j t theta^(-2i/d)); position 0 is the identity."""
    x = np.random.default_rng(0).standard_normal((1, 2, 40, 6))
    turns = np.exp(1j * np.arange(40)[:, None] * 100.0 ** (-np.arange(3)[None] / 3))
    want = (x[..., :3] + 1j * x[..., 3:]) * turns
    got = apply_rotary(jnp.asarray(x, jnp.float32), ROTARY)
    np.testing.assert_allclose(got, np.concatenate([want.real, want.imag], -1), atol=1e-5)
    np.testing.assert_array_equal(got[:, :, 0], x[:, :, 0].astype(np.float32))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 19), st.integers(0, 19), st.integers(0, 20))
def test_rotated_scores_depend_on_distance_only(query, key, shift):
    def score(query, key):
        at = lambda t: Rotary(*(angles[:, :, t : t + 1] for angles in ROTARY))  # noqa: E731
        return (apply_rotary(Q_1d, at(query)) * apply_rotary(K_1d, at(key))).sum()

    np.testing.assert_allclose(score(query + shift, key + shift), score(query, key), atol=1e-5)


@pytest.mark.parametrize("two_sided", [True, False])
def test_buckets_follow_the_papers_formula(two_sided):
    """In integers: half of a side's buckets hold one distance each, the others equal parts of log(128 / exact).

    floor(n log(distance / n) / log(128 / n)) >= i where distance^n n^(i - n) >= 128^i, n = 8 or 16 exact buckets.
    """
    n = 8 if two_sided else 16

    def bucket(size):
        return size if size < n else n - 1 + sum(size**n * n**i >= 128**i * n**n for i in range(n))

    want = [bucket(max(-d, 0)) if not two_sided else bucket(abs(d)) + 16 * (d > 0) for d in range(-300, 301)]
    got = relative_buckets(jnp.arange(-300, 301), two_sided).tolist()
    assert got == want
    assert set(got) == set(range(32)) - ({16} if two_sided else set())  # 16: later keys at distance 0
