"""Sinusoids, rotary embeddings and relative buckets against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.positions import Rotary, apply_rotary, relative_buckets, rotary_embedding, sinusoids
from kd_jax.models.rope import Dynamic, Yarn
from kd_jax.types import Inputs, Tokens

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


def test_part_of_a_head_is_rotated():
    """The first 6 of 10 channels; the others are the same numbers."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 40, 10)), jnp.float32)
    got = apply_rotary(x, ROTARY)
    np.testing.assert_array_equal(got[..., :6], apply_rotary(x[..., :6], ROTARY))
    np.testing.assert_array_equal(got[..., 6:], x[..., 6:])


def yarn_rates(width, theta, yarn, first, last):
    """Return the rates of YaRN in float64, for known ends of the ramp."""
    rates = theta ** (-np.arange(0, width, 2) / width)
    kept = 1 - np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)
    return kept * rates + (1 - kept) * rates / yarn.factor


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("magnitude", [0.0, 0.7])
def test_yarn_follows_the_papers_formula(truncate, magnitude):
    """Angle i has n turns in 1,000 positions at i = 16 ln(1000 / (2 pi n)) / ln(10,000), for 16 angles."""
    yarn = Yarn(8.0, original=1000, low=2.0, high=16.0, magnitude=magnitude, truncate=truncate)
    first, last = 16 * np.log(1000 / (2 * np.pi * np.array([16, 2]))) / np.log(10_000)
    assert (round(first, 2), round(last, 2)) == (3.99, 7.6)
    if truncate:
        first, last = 3, 8
    rotary = rotary_embedding(jnp.arange(50)[None], 32, 10_000.0, yarn)
    angles = np.arange(50)[:, None] * yarn_rates(32, 10_000.0, yarn, first, last)
    factor = magnitude or 0.1 * np.log(8) + 1
    np.testing.assert_allclose(rotary.cosine[0, 0, :, :16], factor * np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(rotary.sine[0, 0, :, 16:], factor * np.sin(angles), atol=1e-5)


def test_dynamic_scaling_is_none_within_the_context_and_refused_beyond():
    position_BT = jnp.arange(8)[None]
    for got, want in zip(rotary_embedding(position_BT, 6, 100.0, Dynamic(4.0)), ROTARY, strict=True):
        np.testing.assert_array_equal(got, want[:, :, :8])
    config = DecoderOnly(1, d_model=8, heads=2, d_ff=8, rope_scaling=Dynamic(4.0), context=8)
    model = config.build(5)
    params = model.init(jax.random.key(0))

    def hidden(length):
        tokens = Tokens(*(jnp.ones((1, length), jnp.int32) for _ in range(3)))
        return model.apply(params, Inputs(jnp.zeros(1, jnp.int32), tokens, None))

    assert hidden(8).shape == (1, 8, 8)
    with pytest.raises(KdError, match=r"model\.context: expected at least 9, the number of tokens of a row, got 8"):
        hidden(9)


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
