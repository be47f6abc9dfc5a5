"""Numbers that change over the steps of a run: weights and temperatures of terms."""

import dataclasses
from typing import Any, Literal, get_args

import jax.numpy as jnp

from kd_jax.config import is_count, is_number
from kd_jax.errors import KdError
from kd_jax.types import Array

Shape = Literal["linear", "cosine"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """From one value to another, between two steps; constant before and after.

    .. math:: v(n) = start + (end - start) s(x), \\quad x = \\min(\\max((n - begin) / steps, 0), 1)

    with s(x) = x for "linear" and (1 - cos(pi x)) / 2 for "cosine".

    Attributes:
      start, end: the values.
      steps: updates (not microbatches) that the change takes.
      begin: the update that it begins at.
      shape: "linear", or "cosine" for a half wave.

    Examples:
      >>> weight = Schedule(1.0, 0.0, steps=4, begin=10)
      >>> [float(weight(n)) for n in (0, 10, 11, 14, 99)]
      [1.0, 1.0, 0.75, 0.0, 0.0]
    """

    start: float
    end: float
    steps: int
    begin: int = 0
    shape: Shape = "linear"

    def __call__(self, step: Array) -> Array:
        """The value at an update's number (0 for the first), float32."""
        done = jnp.clip((jnp.asarray(step, jnp.float32) - self.begin) / self.steps, 0.0, 1.0)
        share = done if self.shape == "linear" else 0.5 - 0.5 * jnp.cos(jnp.pi * done)
        return self.start + (self.end - self.start) * share


def value_at(value: float | Schedule, step: Any) -> Any:
    """A number's or a ramp's value at a step."""
    return value(step) if isinstance(value, Schedule) else value


def check(value: float | Schedule, field: str, least: float) -> None:
    """Refuses anything but a finite number that is positive and at least `least`, or a ramp between such.

    A ramp may start or end at `least` = 0, so that a term fades in or out, but not both.

    Raises:
      KdError: names the field.
    """
    if not isinstance(value, Schedule):
        if not (is_number(value) and value >= least and value > 0):
            wanted = f"a number of at least {least}" if least else "a number more than 0 (leave the term out for none)"
            raise KdError(f"{field}: {value!r}; wanted {wanted}, or a Schedule")
        return
    for name, whole, minimum in (("steps", value.steps, 1), ("begin", value.begin, 0)):
        if not is_count(whole, minimum):
            raise KdError(f"{field}.{name}: {whole!r}; wanted a whole number of at least {minimum}")
    if value.shape not in get_args(Shape):
        raise KdError(f"{field}.shape: {value.shape!r}; wanted one of {', '.join(get_args(Shape))}")
    for name, end in (("start", value.start), ("end", value.end)):
        if not is_number(end) or end < least:
            raise KdError(f"{field}.{name}: {end!r}; wanted a number of at least {least}")
    if max(value.start, value.end) <= 0:
        raise KdError(f"{field}: from {value.start} to {value.end}; wanted one of them more than 0")
