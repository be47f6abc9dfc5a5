"""Metrics as sums of statistics over examples: one definition gives values, intervals, and paired differences."""

import functools
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import regex

BOOTSTRAP_SEED = 12345
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
RougeKind = Literal["L", "1", "2"]


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


def ratio(sums_S: np.ndarray) -> float:
    """The first sum over the second, such as a mean; 0 where nothing was counted.

    Examples:
      >>> ratio(np.array([3.0, 4.0])), ratio(np.zeros(2))
      (0.75, 0.0)
    """
    return float(sums_S[0] / sums_S[1]) if sums_S[1] else 0.0


def bits_per_byte(text_of: Callable[[Mapping[str, str]], str]) -> Metric:
    """Bits that the model needs for each UTF-8 byte of the true texts; comparable across tokenisers.

    .. math:: -\\frac{\\sum \\log_2 p(\\mathrm{token})}{\\mathrm{bytes}}

    The end of a text is paid for and has no byte. An unknown token pays less than the characters that it stands for: a
    tokeniser that lacks some needs byte_fallback.

    Args:
      text_of: example -> the text whose tokens count.

    References:
      Gao et al. 2020, The Pile, arXiv 2101.00027, section 3.1.

    Examples:
      >>> metric = bits_per_byte(lambda example: example["text"])  # two tokens, each one of 16, for eight bytes
      >>> outcome = Outcome([{"text": "un étui"}], [""], [[""]], np.array([2 * math.log(16)]), np.array([2]))
      >>> metric.score(outcome, resamples=0).value
      1.0
    """

    def statistics(outcome: Outcome) -> np.ndarray:
        bytes_N = np.asarray([len(text_of(example).encode()) for example in outcome.examples])
        return np.stack([np.asarray(outcome.nll_N) / math.log(2), bytes_N], axis=1)

    return Metric("bits_per_byte", "bits per byte", False, 3, "tokens", statistics, ratio)


def rouge(kind: RougeKind, language: str) -> Metric:
    """The mean over examples of ROUGE's F, 0 to 100; of several references the nearest.

    Args:
      kind: "L" for the longest common subsequence of words, the text taken as one sentence; "1" and "2" for n-grams.
      language: as for `rouge_f`.

    References:
      Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries.

    Examples:
      >>> outcome = Outcome([{}, {}], ["the cats sat", "a dog"], [["the cat sat"], ["nothing of it"]])
      >>> rouge("L", "en").score(outcome, resamples=0).value
      50.0
    """

    def statistics(outcome: Outcome) -> np.ndarray:
        pairs = zip(outcome.texts, outcome.references, strict=True)
        return np.asarray([(rouge_f(kind, language, text, references), 1) for text, references in pairs])

    words = "own words, stem:yes" if language == "en" else "words of every script, stem:no"
    signature = f"rouge-score {importlib.metadata.version('rouge-score')}, {words}, f-measure, references:max"
    return Metric(f"rouge_{kind.lower()}", f"ROUGE-{kind}", True, 2, "texts", statistics, ratio, signature)


def rouge_f(kind: RougeKind, language: str, text: str, references: Sequence[str]) -> float:
    """ROUGE's F-measure of a text and the nearest reference, 0 to 100 (rouge-score).

    Args:
      kind: see `rouge`.
      language: "en" for rouge-score's own words, which are a-z and 0-9, stemmed; any other for `Words`, unstemmed.
      text: what was written.
      references: what was to be written.

    Examples:
      >>> rouge_f("1", "en", "two houses", ["one house"]), rouge_f("1", "ru", "два дома", ["два дома"])
      (50.0, 100.0)
    """
    name = f"rouge{kind}"
    return 100 * _rouge_scorer(name, language).score_multi(references, text)[name].fmeasure


class Words:
    """A tokeniser for rouge-score: words of every script, in lower case; characters where no blanks part words.

    Examples:
      >>> Words().tokenize("Déjà vu, हिन्दी: 我愛你!")
      ['déjà', 'vu', 'हिन्दी', '我', '愛', '你']
    """

    def tokenize(self, text: str) -> list[str]:
        """The words."""
        return regex.findall(rf"[{UNSPACED}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]+", text.lower(), regex.V1)


@functools.cache
def _rouge_scorer(name: str, language: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # which imports nltk: a second that other tasks need not wait

    return RougeScorer([name], use_stemmer=True, tokenizer=None if language == "en" else Words())
