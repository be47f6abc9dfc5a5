"""Skipped updates change nothing; applied updates are those of the inner transformation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.optim.skipped_updates import WARMUP, skip_outliers

pytestmark = pytest.mark.usefixtures("lax_promotion")
PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}


def gradients(number):
    """Return gradients with a norm near 1."""
    keys = jax.random.split(jax.random.key(0), number)
    return [jax.tree.map(lambda p, k=key: jax.random.normal(k, p.shape) / 8**0.5, PARAMS) for key in keys]


def train(tx, sequence):
    params, state = PARAMS, tx.init(PARAMS)
    for gradient in sequence:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite_are_skipped(value):
    tx, normal = skip_outliers(optax.adam(0.1), 0.0), gradients(6)
    bad = jax.tree.map(lambda x: x.at[0].set(value), normal[0])
    params, state = train(tx, [*normal[:3], bad, *normal[3:]])
    expected_params, expected_state = train(tx, normal)
    chex.assert_trees_all_equal(params, expected_params)
    chex.assert_trees_all_equal(state._replace(skipped=jnp.int32(0)), expected_state)
    assert int(state.skipped) == 1


def test_spikes_are_skipped_after_the_first_updates():
    tx, normal = skip_outliers(optax.adam(0.1), 8.0), gradients(WARMUP + 5)
    spike = jax.tree.map(lambda x: 50 * x, normal[0])
    _, early = train(tx, [*normal[:5], spike])
    assert int(early.skipped) == 0
    params, late = train(tx, [*normal[:WARMUP], spike, *normal[WARMUP:]])
    assert int(late.skipped) == 1
    chex.assert_trees_all_equal(params, train(optax.adam(0.1), normal)[0])
    norms = [float(optax.tree.norm(one)) for one in normal]
    weights = [0.98 ** (len(norms) - i) for i in range(1, len(norms) + 1)]
    mean_norm = float(late.norm) / (1 - 0.98 ** len(norms))
    assert mean_norm == pytest.approx(np.average(norms, weights=weights), rel=1e-5)


@pytest.mark.parametrize("size, skipped", [(7.9, 0), (8.1, 1)])
def test_the_limit_is_a_multiple_of_the_mean_norm(size, skipped):
    """After 20 norms of 1 the mean is 1; not corrected for its start at 0 it would be 1 - 0.98^20 = 0.33."""
    norm_1 = {"w": jnp.zeros((3, 2)).at[0, 0].set(1.0), "b": jnp.zeros(2)}
    tx = skip_outliers(optax.sgd(0.1), 8.0)
    _, state = train(tx, [norm_1] * WARMUP + [jax.tree.map(lambda x: size * x, norm_1)])
    assert int(state.skipped) == skipped and int(state.applied) == WARMUP + 1 - skipped


def test_spikes_are_applied_without_a_ratio():
    tx, normal = skip_outliers(optax.adam(0.1), 0.0), gradients(WARMUP)
    sequence = [*normal, jax.tree.map(lambda x: 1e6 * x, normal[0])]
    params, state = train(tx, sequence)
    chex.assert_trees_all_equal(params, train(optax.adam(0.1), sequence)[0])
    assert int(state.skipped) == 0


def test_only_applied_updates_count_before_a_gradient_can_be_a_spike():
    tx, normal = skip_outliers(optax.sgd(0.1), 8.0), gradients(WARMUP - 1)
    bad, spike = (jax.tree.map(lambda x, by=by: by * x, normal[0]) for by in (np.nan, 50.0))
    _, state = train(tx, [*normal, bad, bad, spike])
    assert int(state.skipped) == 2 and int(state.applied) == WARMUP
