"""Scaling of rotary angles for texts longer than those of the first training."""

import dataclasses

import jax.numpy as jnp

from kd_jax.config import MAX_VOCAB, check_count, is_number
from kd_jax.errors import KdError
from kd_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Linear:
    """All angles divided by one factor (position interpolation, arXiv 2306.15595).

    Attributes:
      factor: divisor of the angles.

    Examples:
      >>> print(Linear(4.0).scale(jnp.array([1.0, 0.5])))
      [0.25  0.125]
    """

    factor: float

    def check(self) -> None:
        """Raise KdError if a field is out of range."""
        _check_positive("factor", self.factor)

    def scale(self, rates: Array) -> Array:
        """Return the scaled rates, in radians per position."""
        return rates / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Scaling of Llama 3.1: slow angles are divided by a factor, fast ones are kept, others interpolated.

    Attributes:
      factor: divisor of the slow angles.
      low: angles with fewer turns than this within `original` positions are slow.
      high: angles with more turns than this within `original` positions are fast.
      original: maximum number of tokens of a text in the first training.

    References:
      Grattafiori et al. 2024, arXiv 2407.21783; the formula is that of the released code.

    Examples:
      >>> turns = jnp.array([0.5, 2.5, 8.0])  # within 100 positions
      >>> scaled = Llama3(factor=8.0, low=1.0, high=4.0, original=100).scale(turns * 2 * jnp.pi / 100)
      >>> print((scaled * 100 / (2 * jnp.pi)).round(3))
      [0.062 1.406 8.   ]
    """

    factor: float
    low: float
    high: float
    original: int

    def check(self) -> None:
        """Raise KdError if a field is out of range."""
        for field in ("factor", "low", "high"):
            _check_positive(field, getattr(self, field))
        check_count("model.rope_scaling.original", self.original, 1, MAX_VOCAB)
        if self.high <= self.low:
            raise KdError(f"model.rope_scaling.high: expected more than low = {self.low}, got {self.high}.")

    def scale(self, rates: Array) -> Array:
        """Return the scaled rates, in radians per position."""
        turns = rates * self.original / (2 * jnp.pi)
        fast = jnp.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return fast * rates + (1 - fast) * rates / self.factor


def _check_positive(field: str, value: object) -> None:
    if not (is_number(value) and value > 0):
        raise KdError(f"model.rope_scaling.{field}: expected a positive number, got {value!r}.")
