"""What the fields of this wing have in common."""

import numbers
from typing import Any


def is_number(value: Any) -> bool:
    """Whether a field holds a finite int or float; True, "0.1" and nan are none here.

    Examples:
      >>> [is_number(value) for value in (1, 0.5, True, "0.1", float("nan"))]
      [True, True, False, False, False]
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(value) < float("inf")


def is_count(value: Any, least: int) -> bool:
    """Whether a field holds a whole number of at least `least`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= least
