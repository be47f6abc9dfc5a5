"""Distances between vectors: closed forms and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kd_jax.losses.features import cosine, mse

RNG = np.random.default_rng(0)


def test_closed_forms():
    a, b = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[2.0, 4.0]])
    np.testing.assert_allclose(mse(a, b), [2.5])
    np.testing.assert_allclose(cosine(a, b), [0.0], atol=1e-6)
    np.testing.assert_allclose(cosine(a, -b), [2.0], rtol=1e-6)
    np.testing.assert_allclose(cosine(a, jnp.asarray([[-2.0, 1.0]])), [1.0], rtol=1e-6)


@pytest.mark.parametrize("teacher_size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("student_size", [1e-4, 1.0, 1e4])
def test_cosine_does_not_depend_on_the_lengths(teacher_size, student_size):
    a, b = RNG.normal(size=(2, 4, 6))
    want = 1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    teacher, student = (jnp.asarray(x, jnp.float32) for x in (teacher_size * a, student_size * b))
    np.testing.assert_allclose(cosine(teacher, student), want, rtol=1e-5, atol=1e-6)


def test_gradients_are_right_and_finite_at_zero():
    a, b = (jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32) for _ in range(2))
    for loss in (mse, cosine):
        check_grads(lambda x, f=loss: f(a, x).sum(), (b,), 1, ["rev"], rtol=2e-2)
    assert jnp.isfinite(jax.grad(lambda x: cosine(a, x).sum())(jnp.zeros_like(a))).all()
