"""The output layer."""

import jax
import jax.numpy as jnp

from tests.models.cases import V, each_family, small_network


@each_family
def test_logits_stay_below_their_soft_cap(family):
    _, model, params = small_network(family, "gemma2")
    logits_NV = model.head(params).logits(100 * jax.random.normal(jax.random.key(0), (5, 16)))
    assert logits_NV.shape == (5, V) and 2.9 < jnp.abs(logits_NV).max() <= 3.0
