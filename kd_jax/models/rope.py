"""Scaling of rotary angles for texts longer than those of the first training."""

import dataclasses
import math

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
      >>> print(Linear(4.0).scale(jnp.array([1.0, 0.5]), theta=4.0))
      [0.25  0.125]
    """

    factor: float

    def check(self) -> None:
        """Raise KdError if a field is out of range."""
        _check_positive("factor", self.factor)

    def scale(self, rates: Array, theta: float) -> Array:
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
      >>> scaled = Llama3(factor=8.0, low=1.0, high=4.0, original=100).scale(turns * 2 * jnp.pi / 100, theta=4.0)
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

    def scale(self, rates: Array, theta: float) -> Array:
        """Return the scaled rates, in radians per position."""
        turns = rates * self.original / (2 * jnp.pi)
        fast = jnp.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return fast * rates + (1 - fast) * rates / self.factor


@dataclasses.dataclass(frozen=True)
class Yarn:
    r"""Scaling of YaRN: the first angles are kept, the last divided by a factor, those between interpolated.

    Angle i of d / 2 has n turns within `original` positions at

    .. math:: i(n) = \frac{d}{2} \log_\theta \frac{original}{2 \pi n}

    Angles up to i(high) are kept, angles from i(low) on are divided; between them the share grows linearly in i.
    Cosines and sines are multiplied by `magnitude`, so scores are multiplied by its square.

    Attributes:
      factor: divisor of the last angles.
      original: maximum number of tokens of a text in the first training.
      low: turns of the first divided angle.
      high: turns of the last kept angle.
      magnitude: factor on cosines and sines; 0 for 0.1 ln(factor) + 1.
      truncate: whether i(high) is rounded down and i(low) up.

    References:
      Peng et al. 2023, arXiv 2309.00071, sections 3.2 and 3.4.

    Examples:
      >>> yarn = Yarn(factor=4.0, original=64, low=1.0, high=8.0)  # i(8) = 0.2, i(1) = 2.02
      >>> print(yarn.scale(jnp.full(4, 4.0), theta=100.0).round(), round(yarn.cosine_factor, 4))
      [4. 3. 2. 1.] 1.1386
    """

    factor: float
    original: int
    low: float = 1.0
    high: float = 32.0
    magnitude: float = 0.0
    truncate: bool = True

    @property
    def cosine_factor(self) -> float:
        """The factor on cosines and sines."""
        return self.magnitude or 1.0 + 0.1 * max(math.log(self.factor), 0.0)

    def check(self) -> None:
        """Raise KdError if a field is out of range."""
        for field in ("factor", "low", "high"):
            _check_positive(field, getattr(self, field))
        if self.magnitude != 0:
            _check_positive("magnitude", self.magnitude)
        check_count("model.rope_scaling.original", self.original, 1, MAX_VOCAB)
        if self.high < self.low:
            raise KdError(f"model.rope_scaling.high: expected at least low = {self.low}, got {self.high}.")
        if type(self.truncate) is not bool:
            raise KdError(f"model.rope_scaling.truncate: expected True or False, got {self.truncate!r}.")

    def scale(self, rates: Array, theta: float) -> Array:
        """Return the scaled rates, in radians per position, of angles with the base `theta`, above 1."""
        count = len(rates)
        first, last = (
            count * math.log(self.original / (2 * math.pi * turns), theta) for turns in (self.high, self.low)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * count - 1)
        divided = jnp.clip((jnp.arange(count, dtype=jnp.float32) - first) / (last - first or 1e-3), 0.0, 1.0)
        return divided * rates / self.factor + (1 - divided) * rates


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Dynamic NTK scaling: a larger base for texts that are longer than `context`.

    Texts of up to `context` tokens have unscaled angles. Here longer rows are refused, so the factor has no effect; it
    is kept for programs that read the model's files.

    Attributes:
      factor: growth of the base with the length of longer texts.

    References:
      Peng et al. 2023, arXiv 2309.00071, section 3.3.

    Examples:
      >>> print(Dynamic(4.0).scale(jnp.array([1.0, 0.5]), theta=4.0))
      [1.  0.5]
    """

    factor: float

    def check(self) -> None:
        """Raise KdError if a field is out of range."""
        _check_positive("factor", self.factor)

    def scale(self, rates: Array, theta: float) -> Array:
        """Return the rates as they are."""
        return rates


RopeScaling = Linear | Llama3 | Yarn | Dynamic


def _check_positive(field: str, value: object) -> None:
    if not (is_number(value) and value > 0):
        raise KdError(f"model.rope_scaling.{field}: expected a positive number, got {value!r}.")
