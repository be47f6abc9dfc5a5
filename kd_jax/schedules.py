"""Weights, temperatures and options of losses that change over the steps of a run."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp

from kd_jax.config import MAX_STEPS, check_count, is_number
from kd_jax.errors import KdError
from kd_jax.types import Array

Shape = Literal["linear", "cosine"]
# Updates at which a function of the step is checked.
CHECKED_STEPS = (0, 1, 10, 100, 1_000, 10_000, 100_000)


@dataclasses.dataclass(frozen=True)
class Schedule:
    r"""A change from one value to another between two steps; constant before and after.

    .. math:: v(n) = start + (end - start) s(x), \quad x = \min(\max((n - begin) / steps, 0), 1)

    with s(x) = x for "linear" and (1 - cos(pi x)) / 2 for "cosine".

    Any other function of the step, for example a schedule of optax, is accepted in its place. A config needs its name,
    so define it in a module beside the config::

        def fade_out(step):
            return optax.exponential_decay(1.0, transition_steps=1000, decay_rate=0.5)(step)

    Attributes:
      start: the value at step `begin` and before.
      end: the value at step `begin + steps` and after.
      steps: number of updates (not microbatches) between both.
      begin: the update at which the change begins.
      shape: "linear", or "cosine" for half a wave.

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

    def __call__(self, step: Array | int) -> Array:
        """Return the value at an update, float32.

        Args:
          step: number of the update, from 0.
        """
        x = jnp.clip((jnp.asarray(step, jnp.float32) - self.begin) / self.steps, 0.0, 1.0)
        share = x if self.shape == "linear" else 0.5 - 0.5 * jnp.cos(jnp.pi * x)
        return self.start + (self.end - self.start) * share


# A number, a Schedule, or a function of the step, as optax has them.
ScalarOrSchedule = float | Schedule | Callable[[Any], Any]


def value_at(value: ScalarOrSchedule, step: Array | int) -> Any:
    """Return the value at a step.

    Args:
      value: a number, or a function of the step.
      step: number of the update, from 0.

    Returns:
      The number itself, or what the function returns.

    Examples:
      >>> value_at(0.5, 7), float(value_at(Schedule(0.0, 1.0, steps=4), 1))
      (0.5, 0.25)
    """
    return value(step) if callable(value) else value


def check(value: Any, field: str, least: float, greatest: float = math.inf) -> None:
    """Check that a value is a positive number or a schedule.

    A schedule may be 0 at some steps if `least` is 0, but not at all of them.

    Args:
      value: a number, a Schedule, or a function of the step, which is evaluated at CHECKED_STEPS.
      field: the name of the field for messages.
      least: the least value allowed.
      greatest: the greatest value allowed.

    Raises:
      KdError: names the field.

    Examples:
      >>> check(-1.0, "weight", 0.0)
      Traceback (most recent call last):
      kd_jax.errors.KdError: weight: expected a number greater than 0 or a Schedule, got -1.0.
    """
    if isinstance(value, Schedule):
        _check_schedule(value, field, least, greatest)
    elif callable(value) and not isinstance(value, type):
        _check_function(value, field, least, greatest)
    elif not (is_number(value) and least <= value <= greatest and value > 0):
        expected = f"a number of at least {least}" if least else "a number greater than 0"
        expected += f" and at most {greatest:g}" if greatest < math.inf else ""
        raise KdError(f"{field}: expected {expected} or a Schedule, got {value!r}.")


def _bounds(least: float, greatest: float) -> str:
    return f"of at least {least}" if greatest == math.inf else f"in [{least:g}, {greatest:g}]"


def _check_schedule(schedule: Schedule, field: str, least: float, greatest: float) -> None:
    check_count(f"{field}.steps", schedule.steps, 1, MAX_STEPS)
    check_count(f"{field}.begin", schedule.begin, 0, MAX_STEPS)
    if schedule.shape not in get_args(Shape):
        raise KdError(f"{field}.shape: expected one of {', '.join(get_args(Shape))}, got {schedule.shape!r}.")
    for name, end in (("start", schedule.start), ("end", schedule.end)):
        if not is_number(end) or not least <= end <= greatest:
            raise KdError(f"{field}.{name}: expected a number {_bounds(least, greatest)}, got {end!r}.")
    if max(schedule.start, schedule.end) <= 0:
        raise KdError(f"{field}: expected a start or an end greater than 0, got {schedule.start} and {schedule.end}.")


def _check_function(function: Callable[[Any], Any], field: str, least: float, greatest: float) -> None:
    values = []
    for step in CHECKED_STEPS:
        try:
            value = float(function(jnp.int32(step)))
        except Exception as error:  # whatever the function raises
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise KdError(f"{field}: expected one number at each step, got {reason} at step {step}.") from error
        if not (math.isfinite(value) and least <= value <= greatest):
            raise KdError(f"{field}: expected a finite number {_bounds(least, greatest)}, got {value} at step {step}.")
        values.append(value)
    if max(values) <= 0:
        raise KdError(f"{field}: expected a number greater than 0, got 0 at each of the steps {CHECKED_STEPS}.")
