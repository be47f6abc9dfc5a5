"""Ramps in closed form, and what is refused as a weight or temperature."""

import math

import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.schedules import Schedule, check, value_at


def test_a_ramp_in_closed_form():
    linear, cosine = (Schedule(1.0, 3.0, steps=6, begin=2, shape=shape) for shape in ("linear", "cosine"))
    numbers = (0, 2, 4, 5, 8, 99)
    np.testing.assert_allclose([linear(n) for n in numbers], [1.0, 1.0, 1 + 2 / 3, 2.0, 3.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose([cosine(n) for n in numbers], [1.0, 1.0, 1.5, 2.0, 3.0, 3.0], rtol=1e-6)


def test_a_number_is_the_same_at_every_step():
    assert value_at(0.5, 7) == 0.5
    np.testing.assert_allclose(value_at(Schedule(0.0, 1.0, steps=4), 1), 0.25)


NOT_NUMBERS = (math.nan, math.inf, True, "0.5", None)


@pytest.mark.parametrize("value", [0.0, -1.0, *NOT_NUMBERS])
def test_a_number_that_is_no_weight_is_refused(value):
    with pytest.raises(KdError) as error:
        check(value, "weight", 0.0)
    assert str(error.value).startswith(f"weight: {value!r}; wanted a number more than 0")


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
def test_a_ramp_out_of_range_is_refused_and_its_field_named(field, values):
    good = {"start": 0.5, "end": 1.0, "steps": 4}
    for value in values:
        with pytest.raises(KdError) as error:
            check(Schedule(**good | {field: value}), "weight", 0.0)
        assert str(error.value).startswith(f"weight.{field}: {value!r}; wanted ")


def test_where_a_ramp_may_end():
    check(Schedule(0.0, 1.0, steps=1), "weight", 0.0)
    check(Schedule(1.0, 0, steps=1), "weight", 0.0)
    with pytest.raises(KdError, match=r"weight: from 0\.0 to 0\.0"):
        check(Schedule(0.0, 0.0, steps=1), "weight", 0.0)
    with pytest.raises(KdError, match=r"temperature\.end: 0\.0"):
        check(Schedule(1.0, 0.0, steps=1), "temperature", 1e-3)
    with pytest.raises(KdError, match=r"temperature: 0\.0; wanted a number of at least 0\.001, or a Schedule"):
        check(0.0, "temperature", 1e-3)
