"""Metrics as sums of statistics over examples: one definition gives values, intervals, and paired differences."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

BOOTSTRAP_SEED = 12345


class Outcome(NamedTuple):
    """What a model wrote for a split's examples, and how likely it held the true texts: all that a metric may see.

    Attributes:
      examples: N of them.
      texts: what was written of each.
      references: what was to be written, one text or more of each.
      nll_N: float64, nats of all tokens that count, of each example; None for what has no probabilities, as a baseline.
      tokens_N: int64, how many tokens those are; None with nll_N.
    """

    examples: Sequence[Mapping[str, str]]
    texts: Sequence[str]
    references: Sequence[Sequence[str]]
    nll_N: np.ndarray | None = None
    tokens_N: np.ndarray | None = None


class Metric(NamedTuple):
    """One measure over a split: a function of statistics that are added up over examples.

    So a value, its bootstrap interval, and a paired difference between two models come from the same numbers.

    Attributes:
      name: its key in reports, such as "bleu"; the interval is "bleu_ci".
      label: its heading for people.
      higher_is_better: its direction; None where it has none, such as a length ratio.
      digits: shown after the point.
      reads: "texts" that were written, or "tokens": the probabilities of the true ones.
      statistics: Outcome -> float64 [examples, S].
      value: their sum [S] -> the metric.
      signature: how it is computed, in the metric's own notation.

    Examples:
      >>> lengths = lambda outcome: np.array([[len(text), 1.0] for text in outcome.texts])
      >>> mean = Metric("length", "length", None, 1, "texts", lengths, lambda sums_S: sums_S[0] / sums_S[1])
      >>> mean.score(Outcome([{}] * 2, ["ab", "abcd"], [["x"]] * 2), resamples=0).value
      3.0
    """

    name: str
    label: str
    higher_is_better: bool | None
    digits: int
    reads: Literal["texts", "tokens"]
    statistics: Callable[[Outcome], np.ndarray]
    value: Callable[[np.ndarray], float]
    signature: str = ""

    def score(self, outcome: Outcome, resamples: int) -> "Score":
        """The value over all examples, and its 95% interval from that many resamples; 0 for none."""
        statistics_NS = np.asarray(self.statistics(outcome), np.float64)
        value = float(self.value(statistics_NS.sum(0)))
        if not resamples:
            return Score(value)
        values = [self.value(sums_S) for sums_S in resampled_sums(statistics_NS, resamples)]
        return Score(value, (float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))))


class Score(NamedTuple):
    """A metric's value over a split.

    Attributes:
      value: the metric.
      interval: (low, high), 95% by bootstrap over examples; None if it was not asked for.
    """

    value: float
    interval: tuple[float, float] | None = None


def resampled_sums(statistics_NS: np.ndarray, resamples: int) -> np.ndarray:
    """Sums over examples drawn with replacement, float64 [resamples, S]; for one N always the same draws.

    So the resamples of two models are paired, example by example.

    References:
      Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation.

    Examples:
      >>> resampled_sums(np.ones((5, 1)), 3).ravel().tolist()
      [5.0, 5.0, 5.0]
    """
    rng, examples = np.random.default_rng(BOOTSTRAP_SEED), len(statistics_NS)
    times_RN = rng.multinomial(examples, np.full(examples, 1 / examples), resamples)
    return times_RN @ statistics_NS
