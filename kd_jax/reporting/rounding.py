"""How many decimals a figure has: as many as its interval supports."""

import math
from collections.abc import Iterable

FLOAT32_DIGITS = 7  # significant digits of what models compute


def decimals(intervals: Iterable[tuple[float, float] | None], digits: int) -> int:
    """Return the number of decimals that the narrowest of some intervals supports.

    This is the rounding rule of the Particle Data Group, applied to half of the interval's width. Its three leading
    digits decide: from 100 to 354 it has two significant digits, from 355 to 949 one, and from 950 to 999 it is rounded
    up to 1000 and has two. A column of a table has the decimals of its narrowest interval.

    Args:
      intervals: (low, high) of each figure; None, infinite ones and those of width 0 are skipped.
      digits: the number of decimals without any interval.

    Returns:
      An integer of at least 0; at most `digits`, or what 7 significant digits of the largest figure need.

    References:
      Particle Data Group, Review of Particle Physics, Introduction, section 5.3.

    Examples:
      >>> decimals([(0.708, 0.946)], 3)  # 0.827 +- 0.119 is 0.83 +- 0.12
      2
      >>> decimals([(0.460, 1.194)], 3)  # 0.827 +- 0.367 is 0.8 +- 0.4
      1
      >>> decimals([(0.0, 2.0), (0.0, 0.192)], 2)  # half-widths 1.0 and 0.096, which is rounded to 0.10
      2
      >>> decimals([(100.0, 150.0)], 2), decimals([None, (3.0, 3.0)], 2)  # a half-width of 25, and no interval
      (0, 2)
    """
    ends = [pair for pair in intervals if pair is not None and 0 < pair[1] - pair[0] < math.inf]
    if not ends:
        return digits
    mantissa, exponent = f"{min(high - low for low, high in ends) / 2:.2e}".split("e")
    supported = (1 if float(mantissa) < 3.55 else 0) - int(exponent)
    largest = max(abs(end) for pair in ends for end in pair)
    meaningful = FLOAT32_DIGITS - 1 - max(0, math.floor(math.log10(largest)))
    return max(0, min(supported, max(digits, meaningful)))
