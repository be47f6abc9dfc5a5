"""Decimals end where the interval begins: the rule of the Particle Data Group, worked out by hand."""

import math

import pytest

from kd_jax.reporting.rounding import decimals


@pytest.mark.parametrize(
    "half_width, expected",
    [
        (0.354, 2),  # 0.35: two significant digits
        (0.355, 1),  # 0.4: one
        (0.949, 1),  # 0.9
        (0.950, 1),  # rounded up to 1.0: two
        (0.0996, 2),  # 0.10
        (1.0, 1),
        (3.54, 1),
        (3.55, 0),
        (9.6, 0),  # 10
        (35.4, 0),  # no decimals to drop
        (0.00408, 3),
        (0.0019, 4),
    ],
)
def test_three_leading_digits_of_the_half_width_decide(half_width, expected):
    assert decimals([(-half_width, half_width)], 2) == expected
    assert decimals([(3 - half_width, 3 + half_width)], 2) == expected


def test_a_column_has_the_decimals_of_its_narrowest_interval():
    assert decimals([(0.0, 10.0), None, (4.0, 4.1), (7.0, 7.0)], 5) == 2  # half of 0.1 is 0.05, one digit of which is
    assert decimals([(0.0, 10.0), (4.0, 4.2)], 5) == 2  # half of 0.2 is 0.10, two digits of which are


@pytest.mark.parametrize("interval", [None, (3.0, 3.0), (math.nan, 1.0), (0.0, math.inf)])
def test_figure_without_a_meaningful_interval_has_the_digits_of_its_metric(interval):
    assert decimals([interval], 3) == 3


def test_no_more_decimals_than_float32_has():
    """Seven digits of 22.5 are 5 decimals; a metric may have more of its own."""
    assert decimals([(22.5 - 1e-9, 22.5 + 1e-9)], 2) == 5
    assert decimals([(-1e-13, 1e-13)], 2) == 6 and decimals([(-1e-13, 1e-13)], 9) == 9
