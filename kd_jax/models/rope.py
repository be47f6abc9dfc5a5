"""How rotary angles are slowed down, so that texts longer than those of the training are within reach."""

import dataclasses

import jax.numpy as jnp

from kd_jax.config import is_number
from kd_jax.errors import KdError
from kd_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Linear:
    """All angles divided by one factor (position interpolation, arXiv 2306.15595).

    Examples:
      >>> print(Linear(4.0).slow(jnp.array([1.0, 0.5])))
      [0.25  0.125]
    """

    factor: float

    def check(self) -> None:
        """Raises KdError naming the field that is out of range."""
        _check(self)

    def slow(self, rates: Array) -> Array:
        """Radians a position, before and after."""
        return rates / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Llama 3.1's: slow angles divided by the factor, fast ones left as they are, those between in proportion.

    Attributes:
      factor: of the slow angles.
      low, high: turns within `original` positions; an angle with fewer than `low` is slow, with more than `high` fast.
      original: longest text of the first training.

    References:
      Grattafiori et al. 2024, arXiv 2407.21783; the formula is that of the released code.

    Examples:
      >>> turns = jnp.array([0.5, 2.5, 8.0])  # within 100 positions
      >>> scaled = Llama3(factor=8.0, low=1.0, high=4.0, original=100).slow(turns * 2 * jnp.pi / 100)
      >>> print((scaled * 100 / (2 * jnp.pi)).round(3))
      [0.062 1.406 8.   ]
    """

    factor: float
    low: float
    high: float
    original: int

    def check(self) -> None:
        """Raises KdError naming the field that is out of range."""
        _check(self)
        if self.high <= self.low:
            raise KdError(f"model.rope_scaling.high: {self.high}; wanted more than low = {self.low}")

    def slow(self, rates: Array) -> Array:
        """Radians a position, before and after."""
        turns = rates * self.original / (2 * jnp.pi)
        fast = jnp.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return fast * rates + (1 - fast) * rates / self.factor


def _check(scaling: "Linear | Llama3") -> None:
    for field, value in vars(scaling).items():
        if not (is_number(value) and value > 0):
            raise KdError(f"model.rope_scaling.{field}: {value}; wanted a positive number")
