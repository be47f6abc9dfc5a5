"""Attention against an explicit softmax in NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.models.attend import MASKED, Scores, attend, attend_causal, mask_bias, same_segment


@settings(max_examples=20, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    scale=st.sampled_from([0.0, 1.0]),
    soft_cap=st.sampled_from([0.0, 0.5]),
    per_head=st.booleans(),
)
def test_attend_equals_explicit_softmax(groups, scale, soft_cap, per_head):
    """With one group (multi-query), as many as heads (multi-head), and in between."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, heads, length, 3)) for heads, length in ((4, 5), (groups, 6), (groups, 6)))
    bias = np.where(rng.random((2, 4 if per_head else 1, 5, 6)) < 0.3, MASKED, 0.0)
    want = np.zeros((2, 5, 4, 3))
    for b, h in np.ndindex(2, 4):
        scores = q[b, h] @ k[b, h * groups // 4].T * (scale or 3**-0.5)
        if soft_cap:
            scores = soft_cap * np.tanh(scores / soft_cap)
        weights = np.exp(scores + bias[b, h if per_head else 0])
        want[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, h * groups // 4]
    got = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v, bias)), Scores(scale, soft_cap))
    np.testing.assert_allclose(got, want.reshape(2, 5, 12), atol=1e-5)


@pytest.mark.parametrize(
    "length", [0, 3, 64, *(pytest.param(length, marks=pytest.mark.extended) for length in (65, 130)), 300]
)
def test_causal_blocks_equal_masked_attention(length):
    """Values and gradients, with several segments."""
    q, k, v, g = (jax.random.normal(jax.random.key(i), (2, 2, length, 4)) for i in range(4))
    segment_BT = jnp.arange(2 * length).reshape(2, length) // 50
    bias = mask_bias(same_segment(segment_BT, segment_BT) & jnp.tri(length, dtype=bool)[None, None])
    sides = [jax.vjp(lambda q, k, v, f=f: f(q, k, v, bias), q, k, v) for f in (attend, attend_causal)]
    cotangent = g.swapaxes(1, 2).reshape(2, length, 8)
    (want, want_back), (got, back) = sides
    chex.assert_trees_all_close((got, back(cotangent)), (want, want_back(cotangent)), atol=1e-5)


def test_mask_of_segments():
    query, key = jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 0, 2]])
    mask = same_segment(query, key)
    assert mask[0, 0].tolist() == [[True, True, False, False], [False, False, False, True], [False, False, True, False]]
    np.testing.assert_array_equal(mask_bias(mask) == 0, mask)
