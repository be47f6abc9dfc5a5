"""Operations over the vocabulary axis equal their plain forms."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.decoding.vocabulary import argmax, draw, nucleus_mask, top_k, top_k_mask


def test_argmax_equals_jax_also_for_ties():
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 4, (50, 9)), jnp.float32)
    np.testing.assert_array_equal(argmax(logits), logits.argmax(-1))


@pytest.mark.parametrize(("size", "k"), [(7, 3), (64, 1), (64, 64), (250, 8), (1001, 8), (4000, 32)])
@pytest.mark.parametrize("values", [3, 10**6], ids=["ties", "few ties"])
def test_top_k_equals_jax_also_for_ties(size, k, values):
    """Also if most of a row is suppressed."""
    logits_NV = np.random.default_rng(0).integers(-values, values, (20, size)).astype(np.float32)
    logits_NV[10:, k:] = -np.inf
    for ours, theirs in zip(jax.jit(top_k, static_argnums=1)(logits_NV, k), jax.lax.top_k(logits_NV, k), strict=True):
        np.testing.assert_array_equal(ours, theirs)


LOGITS = hnp.arrays(np.float32, (3, 12), elements=st.sampled_from([-np.inf, *np.arange(-20, 8, 0.5)]))
jitted_nucleus_mask, jitted_top_k_mask = (jax.jit(f, static_argnums=1) for f in (nucleus_mask, top_k_mask))


@given(LOGITS, st.sampled_from([0.1, 0.5, 0.9, 0.999]))
@settings(deadline=None)
def test_the_nucleus_reaches_top_p_with_the_fewest_tokens(logits_NV, top_p):
    logits_NV[:, 5] = 0.0  # at least one token is possible
    for logits_V, mask_V in zip(logits_NV.astype(np.float64), jitted_nucleus_mask(logits_NV, top_p), strict=True):
        p_V = np.exp(logits_V) / np.exp(logits_V).sum()
        order = np.argsort(-p_V, kind="stable")
        count = mask_V.sum()
        assert sorted(order[:count]) == np.flatnonzero(mask_V).tolist()
        assert p_V[order[:count]].sum() >= top_p - 1e-6 and p_V[order[: count - 1]].sum() < top_p + 1e-6


@given(LOGITS, st.sampled_from([1, 3, 12]))
@settings(deadline=None)
def test_top_k_mask_is_true_at_the_first_k_of_a_stable_sort(logits_NV, k):
    for logits_V, mask_V in zip(logits_NV, jitted_top_k_mask(logits_NV, k), strict=True):
        assert np.flatnonzero(mask_V).tolist() == sorted(np.argsort(-logits_V, kind="stable")[:k])


@pytest.mark.parametrize("p", [(0.5, 0.0, 0.25, 0.125, 0.1, 0.025), (0.0, 0.001, 0.999, 0.0), (0.0, 0.0, 0.0, 1.0)])
def test_draws_have_the_frequencies_of_the_softmax(p):
    """Pearson's statistic of 20,000 draws is within 4 standard deviations; impossible ids are never drawn."""
    draws, p_V = 20_000, np.asarray(p)
    logits = jnp.log(jnp.array([p], jnp.float32))
    ids_N = jax.jit(draw)(jax.random.split(jax.random.key(1), draws), jnp.repeat(logits, draws, axis=0))
    counts_V = np.bincount(ids_N, minlength=len(p))
    assert not counts_V[p_V == 0].any()
    expected = draws * p_V[p_V > 0]
    freedom = len(expected) - 1
    assert (np.square(counts_V[p_V > 0] - expected) / expected).sum() <= freedom + 4 * np.sqrt(2 * freedom)
