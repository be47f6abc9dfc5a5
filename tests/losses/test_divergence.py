"""Forward KL: trap 6 (direction), 8 (0 log 0, low precision)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.test_util import check_grads

from kd_jax.losses.divergence import forward_kl

RNG = np.random.default_rng(0)
P, Q = (jax.nn.log_softmax(jnp.asarray(RNG.normal(size=(5, 9)) * 2, jnp.float32)) for _ in range(2))


def test_two_class_closed_form_tells_the_direction():
    p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
    want = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    np.testing.assert_allclose(forward_kl(p, q), [want], rtol=1e-5)
    assert abs(float(forward_kl(q, p)[0]) - want) > 0.1


def test_equals_optax_where_optax_is_defined():
    np.testing.assert_allclose(forward_kl(P, Q), optax.kl_divergence(Q, jnp.exp(P)), rtol=1e-4)


def test_zero_and_stationary_where_equal():
    assert jnp.abs(forward_kl(P, P)).max() < 1e-6
    gradient = jax.grad(lambda x: forward_kl(P, jax.nn.log_softmax(x)).sum())(P)
    assert jnp.abs(gradient).max() < 1e-6


def test_gradients():
    check_grads(lambda x: forward_kl(P, jax.nn.log_softmax(x)).sum(), (Q,), 1, ["rev"], rtol=2e-2)


def test_zero_log_zero_is_zero_in_value_and_gradient():
    padding = jnp.full((5, 3), -jnp.inf)
    p, q = jnp.concatenate([P, padding], 1), jnp.concatenate([Q, padding], 1)
    np.testing.assert_allclose(forward_kl(p, q), forward_kl(P, Q), rtol=1e-6)
    gradient = jax.grad(lambda x: forward_kl(p, x).sum())(q)
    assert jnp.isfinite(gradient).all()
    assert not gradient[:, 9:].any()


def test_identical_bfloat16_logits_under_jit():
    logits = jnp.asarray(RNG.normal(size=(64, 128)) * 5, jnp.bfloat16)

    @jax.jit
    def kl(a, b):
        return forward_kl(*(jax.nn.log_softmax(x.astype(jnp.float32)) for x in (a, b)))

    assert jnp.abs(kl(logits, logits)).max() < 1e-6
