"""Metrics as functions of statistics summed over examples, so that values, intervals and differences agree."""

import functools
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import regex

from kd_jax.tasks.languages import LETTERS, UNSPACED, is_english

BOOTSTRAP_SEED = 12345
OWN_LETTER = regex.compile("[a-zA-Z0-9]")  # of rouge-score's tokenizer
RougeKind = Literal["L", "1", "2"]


class Outcome(NamedTuple):
    """A model's results on the examples of a split: the input of metrics.

    Attributes:
      examples: the N examples.
      texts: the generated text of each example.
      references: one or more references of each example.
      nll_N: float64, negative log-likelihood in nats of each example's tokens that count; None for a baseline.
      tokens_N: int64, number of those tokens; None for a baseline.
    """

    examples: Sequence[Mapping[str, str]]
    texts: Sequence[str]
    references: Sequence[Sequence[str]]
    nll_N: np.ndarray | None = None
    tokens_N: np.ndarray | None = None


class Metric(NamedTuple):
    """A metric of a split: a function of statistics that are summed over examples.

    A value, its bootstrap interval, and a paired difference between two models come from the same statistics.

    Attributes:
      name: key in reports, such as "bleu"; the interval has the key "bleu_ci".
      label: heading in tables.
      higher_is_better: its direction; None for a metric without one, such as a length ratio.
      digits: digits after the decimal point.
      reads: "texts" for generated texts, "tokens" for probabilities of the references' tokens.
      statistics: Outcome -> float64 [examples, S].
      value: sum of the statistics [S] -> the metric.
      signature: how it is computed, such as sacreBLEU's signature.

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
        """Return the value over all examples and its 95% interval from `resamples` resamples; 0 for no interval."""
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
      interval: (low, high), 95% by bootstrap over examples; None if not computed.
    """

    value: float
    interval: tuple[float, float] | None = None


def resampled_sums(statistics_NS: np.ndarray, resamples: int) -> np.ndarray:
    """Return sums over examples drawn with replacement, float64 [resamples, S].

    The draws depend on N alone, so the resamples of two models are paired by example.

    References:
      Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation.
    """
    rng, examples = np.random.default_rng(BOOTSTRAP_SEED), len(statistics_NS)
    counts_RN = rng.multinomial(examples, np.full(examples, 1 / examples), resamples)
    return counts_RN @ statistics_NS


def ratio(sums_S: np.ndarray) -> float:
    """Return the first sum / the second; 0 if the second is 0."""
    return float(sums_S[0] / sums_S[1]) if sums_S[1] else 0.0


def bits_per_byte(text_of: Callable[[Mapping[str, str]], str]) -> Metric:
    r"""Return the metric of bits per UTF-8 byte of the references, which is comparable between tokenizers.

    .. math:: -\frac{\sum \log_2 p(\mathrm{token})}{\mathrm{bytes}}

    The end token has bits and no byte. An unknown token has fewer bits than its characters would need, so a tokenizer
    that lacks characters needs byte_fallback.

    References:
      Gao et al. 2020, The Pile, arXiv 2101.00027, section 3.1.
    """

    def statistics(outcome: Outcome) -> np.ndarray:
        bytes_N = np.asarray([len(text_of(example).encode()) for example in outcome.examples])
        return np.stack([np.asarray(outcome.nll_N) / math.log(2), bytes_N], axis=1)

    return Metric("bits_per_byte", "bits per byte", False, 3, "tokens", statistics, ratio)


def rouge(kind: RougeKind, language: str) -> Metric:
    """Return the metric of mean ROUGE F-measure, 0 to 100, with the best of several references.

    References:
      Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries.
    """

    def statistics(outcome: Outcome) -> np.ndarray:
        pairs = zip(outcome.texts, outcome.references, strict=True)
        return np.asarray([(rouge_f(kind, language, text, references), 1) for text, references in pairs])

    words = "words of every script, stem:no"
    if is_english(language):
        words = f"own words, stem:yes (references in other scripts: {words})"
    signature = f"rouge-score {importlib.metadata.version('rouge-score')}, {words}, f-measure, references:max"
    return Metric(f"rouge_{kind.lower()}", f"ROUGE-{kind}", True, 2, "texts", statistics, ratio, signature)


def rouge_f(kind: RougeKind, language: str, text: str, references: Sequence[str]) -> float:
    """Return ROUGE's F-measure of a text and its best reference, 0 to 100 (rouge-score).

    `kind` is "L" for the longest common subsequence of words of the whole text, "1" or "2" for n-grams. For English the
    words are those of rouge-score's tokenizer (a-z and 0-9, stemmed). For other languages, and for references most of
    whose letters are not a-z, they are those of `WordTokenizer`, without stems.
    """
    name = f"rouge{kind}"
    scores = []
    for reference in references:
        own_words = is_english(language) and 2 * len(OWN_LETTER.findall(reference)) >= len(LETTERS.findall(reference))
        scores.append(_rouge_scorer(name, own_words).score(reference, text)[name].fmeasure)
    return 100 * max(scores)


class WordTokenizer:
    """A tokenizer for rouge-score: lower-case words of every script; characters in scripts without blanks.

    Examples:
      >>> WordTokenizer().tokenize("Déjà vu, हिन्दी: 我愛你!")
      ['déjà', 'vu', 'हिन्दी', '我', '愛', '你']
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the words."""
        return regex.findall(rf"[{UNSPACED}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]+", text.lower(), regex.V1)


@functools.cache
def _rouge_scorer(name: str, own_words: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # it imports nltk, which takes a second

    return RougeScorer([name], use_stemmer=True, tokenizer=None if own_words else WordTokenizer())
