"""What is left out leaves no trace; what is usual is learnt from; Adam's own steps are the same with and without."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.optim.skipped_updates import TRUSTED, without_outliers

pytestmark = pytest.mark.usefixtures("lax_promotion")
PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}


def gradients(number):
    """Of a norm near 1."""
    keys = jax.random.split(jax.random.key(0), number)
    return [jax.tree.map(lambda p, k=key: jax.random.normal(k, p.shape) / 8**0.5, PARAMS) for key in keys]


def trained(tx, sequence):
    params, state = PARAMS, tx.init(PARAMS)
    for gradient in sequence:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_leaves_no_trace(value):
    tx, usual = without_outliers(optax.adam(0.1), 0.0), gradients(6)
    bad = jax.tree.map(lambda x: x.at[0].set(value), usual[0])
    params, state = trained(tx, [*usual[:3], bad, *usual[3:]])
    wanted, without = trained(tx, usual)
    chex.assert_trees_all_equal(params, wanted)
    chex.assert_trees_all_equal(state._replace(skipped=jnp.int32(0)), without)
    assert int(state.skipped) == 1


def test_a_spike_is_left_out_once_it_is_known_what_is_usual():
    tx, usual = without_outliers(optax.adam(0.1), 8.0), gradients(TRUSTED + 5)
    spike = jax.tree.map(lambda x: 50 * x, usual[0])
    _, early = trained(tx, [*usual[:5], spike])
    assert int(early.skipped) == 0
    params, late = trained(tx, [*usual[:TRUSTED], spike, *usual[TRUSTED:]])
    assert int(late.skipped) == 1
    chex.assert_trees_all_equal(params, trained(optax.adam(0.1), usual)[0])
    norms = [float(optax.tree.norm(one)) for one in usual]
    weights = [0.98 ** (len(norms) - i) for i in range(1, len(norms) + 1)]
    usual_norm = float(late.norm) / (1 - 0.98 ** len(norms))
    assert usual_norm == pytest.approx(np.average(norms, weights=weights), rel=1e-5)


def test_without_a_limit_a_spike_is_learnt_from():
    tx, usual = without_outliers(optax.adam(0.1), 0.0), gradients(TRUSTED)
    sequence = [*usual, jax.tree.map(lambda x: 1e6 * x, usual[0])]
    params, state = trained(tx, sequence)
    chex.assert_trees_all_equal(params, trained(optax.adam(0.1), sequence)[0])
    assert int(state.skipped) == 0
