"""Machine translation: two text fields, scored by BLEU and chrF."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sacrebleu import sentence_bleu
from sacrebleu.metrics import BLEU, CHRF

from kd_jax.types import Field


@dataclasses.dataclass(frozen=True)
class Translation:
    """From the field `source` into the field `target`.

    Attributes:
      source: name of the source text in an example.
      target: name of the text to write.
    """

    source: str = "en"
    target: str = "fr"

    name = "translation"

    def fields(self) -> tuple[str, ...]:
        """The fields that an example must have."""
        return self.source, self.target

    def encode(self, example: Mapping[str, str], tokenizer: Any, eos: int) -> dict[str, np.ndarray]:
        """Token ids that end with `eos`, and the mask of the targets that count: all, the end included.

        Returns:
          {"source": int32 [S], "target": int32 [T], "mask": bool [T]}.
        """
        source = np.asarray([*tokenizer.encode(example[self.source]), eos], np.int32)
        target = np.asarray([*tokenizer.encode(example[self.target]), eos], np.int32)
        return {"source": source, "target": target, "mask": np.ones(len(target), bool)}

    def schema(self) -> dict[str, Field]:
        """What `encode` leaves, as it is stored."""
        return {"source": Field((), "int32"), "target": Field((), "int32"), "mask": Field((), "bool")}

    def closeness(self, hypothesis: str, reference: str) -> float:
        """Sentence BLEU with exponential smoothing (sacreBLEU), 0 to 100: for the choice among hypotheses."""
        return sentence_bleu(hypothesis, [reference]).score

    def score(self, hypotheses: Sequence[str], references: Sequence[str], bootstrap: int = 0) -> dict[str, Any]:
        """Corpus BLEU (13a, cased) and chrF2 by sacreBLEU, with 95% bootstrap intervals.

        Args:
          hypotheses, references: one text each, in the same order.
          bootstrap: resamples; 0 for no intervals.

        Returns:
          {"bleu", "bleu_ci": [low, high] or None, "chrf", "chrf_ci", "signature"}.
        """
        os.environ.setdefault("SACREBLEU_SEED", "12345")
        result: dict[str, Any] = {}
        for key, metric in (("bleu", BLEU()), ("chrf", CHRF())):
            score = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=bootstrap or 1)
            result |= {key: score.score, f"{key}_ci": _interval(score, metric) if bootstrap else None}
            if key == "bleu":
                result["signature"] = str(metric.get_signature())
        return result


def _interval(score: Any, metric: Any) -> list[float]:
    """[low, high] around the mean of the resamples; sacreBLEU gives none where every resample scores 0."""
    found = json.loads(score.format(width=4, signature=metric.get_signature().format(), is_json=True))
    if "confidence_mean" not in found:
        return [score.score, score.score]
    return [found["confidence_mean"] - found["confidence_var"], found["confidence_mean"] + found["confidence_var"]]
