"""Measures: identities, and counts that stay exact."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.metrics import compare, likeliest, total
from kd_jax.types import Sum

RNG = np.random.default_rng(0)
TEACHER, STUDENT = (jnp.asarray(RNG.normal(size=(9, 7)), jnp.float32) for _ in range(2))
TARGETS = jnp.asarray(RNG.integers(0, 7, 9), jnp.int32)
MASK = jnp.asarray([True] * 6 + [False] * 3)


def test_mask_equals_slice():
    masked = compare(TEACHER, STUDENT, TARGETS, MASK)
    sliced = compare(TEACHER[:6], STUDENT[:6], TARGETS[:6], jnp.ones(6, bool))
    for name, one in masked.items():
        np.testing.assert_allclose(one.mean(), sliced[name].mean(), rtol=1e-6)


def test_a_model_beside_itself():
    same = compare(TEACHER, TEACHER, TARGETS, MASK)
    assert abs(same["kl_to_teacher"].mean()) < 1e-6 and same["agreement"].mean() == 1


def test_likeliest_is_argmax_ties_to_the_first():
    logits = jnp.asarray(RNG.integers(0, 4, (50, 9)), jnp.float32)
    np.testing.assert_array_equal(likeliest(logits), logits.argmax(-1))


def test_65537_ones_count_to_65537():
    counted = jax.jit(total)(jnp.ones(65_537, jnp.bfloat16), jnp.ones(65_537, bool))
    assert int(counted.weight) == 65_537 and float(counted.value) == 65_537


def test_nothing_counted_is_zero():
    assert Sum(jnp.float32(0), jnp.int32(0)).mean() == 0
