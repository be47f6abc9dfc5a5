"""What a signal covers and loses of a distribution: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.evaluation.cache_cost import candidate_signals, draws_coverage, topk_coverage
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK

KEYS = jax.random.split(jax.random.key(0), 40)


def test_topk_of_the_whole_vocabulary_loses_nothing():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(40, 8)), jnp.float32)
    covered_N, lost_N = topk_coverage(TopK(k=8), logits, KEYS)
    np.testing.assert_allclose(covered_N, 1, atol=1e-3)
    np.testing.assert_allclose(lost_N, 0, atol=1e-3)


def test_topk_of_an_even_distribution_loses_nothing():
    covered_N, lost_N = topk_coverage(TopK(k=2), jnp.zeros((40, 8)), KEYS)
    np.testing.assert_allclose(covered_N, 0.25, atol=1e-3)
    np.testing.assert_allclose(lost_N, 0, atol=1e-3)


def test_draws_of_a_certain_distribution_are_one_id():
    logits = jnp.full((40, 8), -1e4).at[:, 3].set(0.0)
    unique_N, lost_N = draws_coverage(Sampled(draws=16), logits, KEYS)
    assert unique_N.tolist() == [1.0] * 40
    np.testing.assert_allclose(lost_N, 0, atol=1e-3)


def test_candidates_fit_the_vocabulary():
    assert [title for title in candidate_signals(40) if title.startswith("top")] == ["top 8", "top 16", "top 32"]
