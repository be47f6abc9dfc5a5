"""Machine translation: two text fields, scored by BLEU and chrF."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu import sentence_bleu
from sacrebleu.metrics import BLEU, CHRF

from kd_jax.errors import KdError
from kd_jax.tasks.base import Encoded, Example, Metric, Score

os.environ.setdefault("SACREBLEU_SEED", "12345")  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class Translation:
    """From the field `source` into the field `target`.

    Attributes:
      source: name of the source text in an example.
      target: name of the text to write.

    Examples:
      >>> task = Translation(source="en", target="fr")
      >>> task.prompt({"en": "a house", "fr": "une maison"}), task.fields()
      ('a house', ('en', 'fr'))
    """

    source: str = "en"
    target: str = "fr"

    name = "translation"

    def check(self) -> None:
        """Raises KdError where source and target are one field."""
        if self.source == self.target:
            raise KdError(f"task.target: {self.target!r}, as task.source; wanted two fields")

    def fields(self) -> tuple[str, ...]:
        """The fields that an example must have."""
        return self.source, self.target

    def encode(self, example: Example, tokenizer: Any) -> Encoded:
        """Token ids that end with the end of the sentence; all targets count, the end included."""
        completion = np.asarray([*tokenizer.encode(self.reference(example)), tokenizer.eos], np.int32)
        prompt = self.encode_prompt(self.prompt(example), tokenizer)
        return Encoded(prompt, completion, np.ones(len(completion), bool))

    def encode_prompt(self, text: str, tokenizer: Any) -> np.ndarray:
        """The source's token ids and the end of the sentence, int32 [P]."""
        return np.asarray([*tokenizer.encode(text), tokenizer.eos], np.int32)

    def prompt(self, example: Example) -> str:
        """The source text."""
        return example[self.source]

    def reference(self, example: Example) -> str:
        """The reference translation."""
        return example[self.target]

    def closeness(self, hypothesis: str, reference: str) -> float:
        """Sentence BLEU with exponential smoothing (sacreBLEU), 0 to 100."""
        return sentence_bleu(hypothesis, [reference]).score

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Corpus BLEU (13a, cased) and chrF2 by sacreBLEU, 0 to 100."""
        return Metric("bleu", "BLEU", True, 2, bleu), Metric("chrf", "chrF", True, 2, chrf)


def bleu(hypotheses: Sequence[str], references: Sequence[str], bootstrap: int = 0) -> Score:
    """Corpus BLEU by sacreBLEU, cased, tokenised by 13a.

    Args:
      hypotheses, references: one text each, in the same order.
      bootstrap: resamples for the 95% interval; 0 for none.

    References:
      Post 2018, arXiv 1804.08771; Papineni et al. 2002.

    Examples:
      >>> bleu(["the cat sat on the mat"], ["the cat sat on the mat"]).value
      100.0...
    """
    return _score(_Bleu(), hypotheses, references, bootstrap)


def chrf(hypotheses: Sequence[str], references: Sequence[str], bootstrap: int = 0) -> Score:
    """chrF2 by sacreBLEU (Popović 2015); arguments as `bleu`.

    Examples:
      >>> chrf(["the cat"], ["the cat"]).value
      100.0
    """
    return _score(_Chrf(), hypotheses, references, bootstrap)


class _Bleu(BLEU):
    def _compute_score_from_stats(self, stats: Any) -> Any:
        return _as_float(super()._compute_score_from_stats(stats))


class _Chrf(CHRF):
    def _compute_score_from_stats(self, stats: Any) -> Any:
        return _as_float(super()._compute_score_from_stats(stats))


def _as_float(score: Any) -> Any:
    """sacreBLEU 2.6 gives a resample without a match as a float, others as a NumPy float32, and fails on their mean."""
    score.score = float(score.score)
    return score


def _score(metric: Any, hypotheses: Sequence[str], references: Sequence[str], bootstrap: int) -> Score:
    scored = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=bootstrap or 1)
    signature = str(metric.get_signature())
    if not bootstrap:
        return Score(scored.score, None, signature)
    said = json.loads(scored.format(width=4, signature=metric.get_signature().format(), is_json=True))
    # sacreBLEU gives no interval where every resample scores the same, as a dead model's zeros do.
    if "confidence_mean" not in said:
        return Score(scored.score, (scored.score, scored.score), signature)
    mean, half = said["confidence_mean"], said["confidence_var"]
    return Score(scored.score, (max(0.0, mean - half), min(100.0, mean + half)), signature)
