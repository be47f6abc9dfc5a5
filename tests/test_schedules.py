"""Schedules in closed form, and checks of weights and temperatures."""

import math

import numpy as np
import optax
import pytest

from kd_jax.errors import KdError
from kd_jax.schedules import Schedule, check, value_at


def test_a_schedule_in_closed_form():
    linear, cosine = (Schedule(1.0, 3.0, steps=6, begin=2, shape=shape) for shape in ("linear", "cosine"))
    steps = (0, 2, 4, 5, 8, 99)
    np.testing.assert_allclose([linear(n) for n in steps], [1.0, 1.0, 1 + 2 / 3, 2.0, 3.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose([cosine(n) for n in steps], [1.0, 1.0, 1.5, 2.0, 3.0, 3.0], rtol=1e-6)


def test_a_number_is_constant_and_functions_are_evaluated():
    assert value_at(0.5, 7) == 0.5
    np.testing.assert_allclose(value_at(Schedule(0.0, 1.0, steps=4), 1), 0.25)
    np.testing.assert_allclose(value_at(optax.linear_schedule(0.0, 1.0, 4), 1), 0.25)


NOT_NUMBERS = (math.nan, math.inf, True, "0.5", None)


@pytest.mark.parametrize("value", [0.0, -1.0, *NOT_NUMBERS, Schedule])
def test_weights_that_are_no_positive_number_are_refused(value):
    with pytest.raises(KdError) as error:
        check(value, "weight", 0.0)
    assert str(error.value) == f"weight: expected a number greater than 0 or a Schedule, got {value!r}."


@pytest.mark.parametrize(
    "field, values",
    {
        "start": (-1.0, *NOT_NUMBERS),
        "end": (-1.0, *NOT_NUMBERS),
        "steps": (0, 2.5, *NOT_NUMBERS),
        "begin": (-1, 2.5, *NOT_NUMBERS),
        "shape": ("line", None),
    }.items(),
)
def test_a_schedule_out_of_range_is_refused_and_its_field_named(field, values):
    good = {"start": 0.5, "end": 1.0, "steps": 4}
    for value in values:
        with pytest.raises(KdError) as error:
            check(Schedule(**good | {field: value}), "weight", 0.0)
        assert str(error.value).startswith(f"weight.{field}: expected ")
        assert str(error.value).endswith(f", got {value!r}.")


def test_a_schedule_may_start_or_end_at_the_least_value():
    check(Schedule(0.0, 1.0, steps=1), "weight", 0.0)
    check(Schedule(1.0, 0, steps=1), "weight", 0.0)
    with pytest.raises(KdError, match=r"weight: expected a start or an end greater than 0, got 0\.0 and 0\.0"):
        check(Schedule(0.0, 0.0, steps=1), "weight", 0.0)
    with pytest.raises(KdError, match=r"temperature\.end: expected a number of at least 0\.001, got 0\.0"):
        check(Schedule(1.0, 0.0, steps=1), "temperature", 1e-3)
    with pytest.raises(KdError, match=r"temperature: expected a number of at least 0\.001 or a Schedule, got 0\.0"):
        check(0.0, "temperature", 1e-3)


def test_functions_of_the_step_are_checked_at_some_steps():
    check(optax.linear_schedule(0.0, 1.0, 50), "weight", 0.0)
    check(lambda step: 2.0, "temperature", 1e-3)
    for function, message in (
        (
            optax.linear_schedule(1.0, -1.0, 10),
            r"weight: expected a finite number of at least 0\.0, got -1\.0 at step 10",
        ),
        (lambda step: math.nan, r"weight: expected a finite number .* got nan at step 0"),
        (lambda step: 0.0, "weight: expected a number greater than 0, got 0 at each of the steps"),
        (lambda step: np.ones(2), "weight: expected one number at each step, got TypeError"),
        (lambda: 1.0, "weight: expected one number at each step, got TypeError"),
    ):
        with pytest.raises(KdError, match=message):
            check(function, "weight", 0.0)


def test_a_greatest_value_bounds_numbers_schedules_and_functions():
    for value in (1, 0.5, Schedule(0.0, 1.0, steps=4), optax.linear_schedule(0.0, 1.0, 4)):
        check(value, "t", 0.0, 1.0)
    for value, message in (
        (1.5, r"t: expected a number greater than 0 and at most 1 or a Schedule, got 1\.5"),
        (Schedule(0.0, 1.5, steps=4), r"t\.end: expected a number in \[0, 1\], got 1\.5"),
        (optax.linear_schedule(0.0, 2.0, 4), r"t: expected a finite number in \[0, 1\], got 2\.0 at step 10"),
    ):
        with pytest.raises(KdError, match=message):
            check(value, "t", 0.0, 1.0)
