"""Numbers that change over the steps of a run: weights and temperatures of terms."""

import dataclasses
from numbers import Real
from typing import Any, Literal

import jax.numpy as jnp

from kd_jax.errors import KdError
from kd_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Ramp:
    """From one value to another, between two steps; constant before and after.

    Attributes:
      start, end: the values.
      steps: updates (not microbatches) that the change takes.
      begin: the update that it begins at.
      shape: "linear", or "cosine" for a half wave.
    """

    start: float
    end: float
    steps: int
    begin: int = 0
    shape: Literal["linear", "cosine"] = "linear"

    def __call__(self, step: Array) -> Array:
        """The value at an update's number (0 for the first), float32."""
        done = jnp.clip((jnp.asarray(step, jnp.float32) - self.begin) / self.steps, 0.0, 1.0)
        share = done if self.shape == "linear" else 0.5 - 0.5 * jnp.cos(jnp.pi * done)
        return self.start + (self.end - self.start) * share


def at(value: float | Ramp, step: Any) -> Any:
    """A number's or a ramp's value at a step."""
    return value(step) if isinstance(value, Ramp) else value


def check(value: float | Ramp, field: str, least: float) -> None:
    """Refuses anything but numbers of at least `least` (0 for a ramp's ends: more than 0 in between).

    Raises:
      KdError: names the field.
    """
    if isinstance(value, Ramp):
        if value.steps < 1 or value.begin < 0 or value.shape not in ("linear", "cosine"):
            raise KdError(f"{field}: {value}; wanted steps of at least 1, begin of at least 0, linear or cosine")
        ends = (value.start, value.end)
        if not all(isinstance(end, Real) and least <= end < float("inf") for end in ends) or max(ends) <= 0:
            raise KdError(f"{field}: from {value.start} to {value.end}; wanted numbers of at least {least}, not both 0")
    elif not (isinstance(value, Real) and least <= value < float("inf") and value > 0):
        raise KdError(f"{field}: {value!r}; wanted a positive number (leave the term out for none)")
