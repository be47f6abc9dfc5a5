"""How losses are called, and how they declare their options.

A loss is a pure function of two arrays that returns one float per token. A term decides which two arrays it gets:

  - no signal: ``loss(logits_NV, targets_N, **options)``;
  - a signal of distributions: ``loss(teacher_logp_NK, student_logp_NK, **options)``;
  - a signal of vectors: ``loss(teacher_NX, student_NX, **options)``.

The teacher comes first. Losses with the argument names of optax, which puts the student first, are called by name: see
`comparison`. Further arguments with a default are options. The annotation of an option declares its range, and
whether a Schedule may give it: see `Range`.
"""

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from kd_jax import schedules
from kd_jax.config import is_number
from kd_jax.errors import KdError
from kd_jax.schedules import ScalarOrSchedule, value_at
from kd_jax.types import Array

Loss = Callable[..., Array]
LossKind = Literal["targets", "divergence", "vectors"]

# optax's names of (student, teacher).
OPTAX_ARGUMENTS = (("log_predictions", "log_targets"), ("predictions", "targets"))
# Arrays that total_loss shares between terms. They are no options of a loss.
SHARED_ARRAYS = {"log_z_N"}


class Range(NamedTuple):
    """The least and the greatest value of an option, both allowed.

    Attributes:
      least: the lower bound.
      greatest: the upper bound.
      scheduled: whether a Schedule or a function of the step may give the option. The loss then gets a traced scalar,
        so it must not branch on the value in Python.

    Examples:
      >>> def power(teacher_NX, student_NX, exponent: typing.Annotated[float, Range(1.0, 4.0)] = 2.0):
      ...     return (abs(teacher_NX - student_NX) ** exponent).sum(-1)
      >>> option_ranges(power)
      {'exponent': Range(least=1.0, greatest=4.0, scheduled=False)}
    """

    least: float
    greatest: float
    scheduled: bool = False


def function_of(loss: Loss) -> Loss:
    """Return the function inside a functools.partial, or the loss itself."""
    return loss.func if isinstance(loss, functools.partial) else loss


def name_of(loss: Loss) -> str:
    """Return the name of a loss for messages.

    Examples:
      >>> from kd_jax.losses.divergence import jensen_shannon
      >>> name_of(functools.partial(jensen_shannon, beta=0.3))
      'jensen_shannon(beta=0.3)'
    """
    function = function_of(loss)
    name = getattr(function, "__name__", repr(function))
    if not isinstance(loss, functools.partial):
        return name
    return f"{name}({', '.join(f'{option}={value}' for option, value in loss.keywords.items())})"


def argument_names(loss: Loss) -> tuple[str, ...]:
    """Return the names of the first two arguments of a loss."""
    return tuple(inspect.signature(function_of(loss)).parameters)[:2]


def options_at(options: Mapping[str, ScalarOrSchedule], step: Array | int) -> dict[str, Any]:
    """Return the value of every option at a step; a number stays the same Python number.

    Args:
      options: name -> a number, a Schedule, or a function of the step.
      step: number of the update, from 0.

    Examples:
      >>> options_at({"alpha": 0.1, "t": schedules.Schedule(0.0, 1.0, steps=4)}, 1)
      {'alpha': 0.1, 't': Array(0.25, dtype=float32)}
    """
    return {name: value_at(value, step) for name, value in options.items()}


def comparison(loss: Loss, options: Mapping[str, Any]) -> Callable[[Array, Array], Array]:
    """Return a loss as a function of the teacher's and the student's arrays, float [N, K] each.

    A loss is called as ``loss(teacher, student, **options)``. If its arguments have the names of optax, the student is
    passed as `predictions` or `log_predictions` and the teacher as `targets` or `log_targets`.
    """
    names = argument_names(loss)
    if names in OPTAX_ARGUMENTS:
        student, teacher = names
        return lambda teacher_NK, student_NK: loss(**{student: student_NK, teacher: teacher_NK}, **options)
    return functools.partial(loss, **options)


def option_ranges(loss: Loss) -> dict[str, Range]:
    """Return the range of every option of a loss; without bounds if none is declared."""
    unbounded = Range(-float("inf"), float("inf"))
    ranges = {}
    for parameter in list(inspect.signature(function_of(loss)).parameters.values())[2:]:
        if parameter.default is not parameter.empty and parameter.name not in SHARED_ARRAYS:
            declared = [bounds for bounds in typing.get_args(parameter.annotation) if isinstance(bounds, Range)]
            ranges[parameter.name] = declared[0] if declared else unbounded
    return ranges


def check_options(loss: Loss, options: Mapping[str, ScalarOrSchedule]) -> None:
    """Check that a loss, also a functools.partial, has these options and that their values are in range.

    A Schedule, or a function of the step, is accepted in `options` for an option whose Range has `scheduled`.
    """
    ranges = option_ranges(loss)
    bound = loss.keywords if isinstance(loss, functools.partial) else {}
    for option, value in {**bound, **options}.items():
        if option not in ranges:
            nearest = difflib.get_close_matches(option, ranges, n=1)
            remedy = f"Did you mean {nearest[0]}?" if nearest else "Remove it."
            expected = f"an option of {name_of(function_of(loss))} ({', '.join(ranges) or 'it has none'})"
            raise KdError(f"options.{option}: expected {expected}, got {option}. {remedy}")
        least, greatest, scheduled = ranges[option]
        if scheduled and option in options and callable(value):
            schedules.check(value, f"options.{option}", least, greatest)
        elif not (is_number(value) and least <= value <= greatest):
            raise KdError(f"options.{option}: expected a number in [{least:g}, {greatest:g}], got {value!r}.")
