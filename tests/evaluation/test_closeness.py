"""Measures: identities, and counts that stay exact."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.evaluation.closeness import BINS, calibration, calibration_error, compare, likeliest, total
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


def test_acceptance_is_the_mass_in_common():
    teacher, student = (np.asarray(jax.nn.softmax(x[:6])) for x in (TEACHER, STUDENT))
    want = np.minimum(teacher, student).sum(-1).sum() / 6  # speculative decoding's acceptance rate
    np.testing.assert_allclose(compare(TEACHER, STUDENT, TARGETS, MASK)["acceptance"].mean(), want, rtol=1e-5)
    assert compare(TEACHER, TEACHER, TARGETS, MASK)["acceptance"].mean() == 1


def test_calibration_error_closed_form():
    """Ten tokens of confidence 0.9, seven right, ten of 0.5, five right: |0.7 - 0.9| / 2; and parts add up."""
    confidence = np.repeat([0.9, 0.5], 10)
    logits = jnp.asarray(np.log(np.stack([confidence, *[(1 - confidence) / 6] * 6], 1)), jnp.float32)
    targets = jnp.asarray([0] * 7 + [1] * 3 + [0] * 5 + [1] * 5, jnp.int32)
    bins = calibration(logits, targets, jnp.ones(20, bool))
    assert bins.value.shape == (BINS,)
    np.testing.assert_allclose(calibration_error(jax.device_get(bins)), 0.1, rtol=1e-5)
    halves = [calibration(logits[at], targets[at], jnp.ones(10, bool)) for at in (slice(0, 20, 2), slice(1, 20, 2))]
    added = jax.device_get(jax.tree.map(jnp.add, *halves))
    np.testing.assert_allclose(calibration_error(added), 0.1, rtol=1e-5)
