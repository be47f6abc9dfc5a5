"""Sequence-level distillation: the teacher's own translations as targets, so a transform of the data.

Kim & Rush 2016, arXiv 1606.07947, sections 3.2 and 3.3.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np

from kd_jax.errors import KdError
from kd_jax.types import Field

# What the n-best store holds of each example: its hypotheses end to end, their lengths and log-probabilities.
NBEST = {"ids": Field((), "int32"), "lengths": Field((), "int32"), "logp": Field((), "float32")}
WEIGHT = {"weight": Field((), "float32")}  # one per example, of mean 1 over an example's hypotheses


@dataclasses.dataclass(frozen=True)
class PseudoTargets:
    """Which of the teacher's beam become targets.

    Attributes:
      rule: "best": the hypothesis of the highest score. "nbest": all of them, each weighted by the
        teacher's probability renormalised over them. "interpolated": the one closest to the reference
        (Seq-Inter, eq. 9), by the task's own measure.
      beam: width of the teacher's beam search, and the number of hypotheses.
      of: whose: "train": of the training examples, in place of their references. "unlabelled": of the examples
        that have none, beside the training examples as they are. "both": of all.

    References:
      Kim and Rush 2016, arXiv 1606.07947, sections 3.2 and 3.3.

    Examples:
      >>> hypotheses, logp = [np.array([7, 8, 2]), np.array([9, 2])], np.log([0.3, 0.1])
      >>> chosen = PseudoTargets("nbest", beam=2).choose(hypotheses, logp, closeness=len)
      >>> [(ids.tolist(), round(float(weight), 3)) for ids, weight in chosen]
      [([7, 8, 2], 1.5), ([9, 2], 0.5)]
    """

    rule: Literal["best", "nbest", "interpolated"] = "best"
    beam: int = 4
    of: Literal["train", "unlabelled", "both"] = "train"

    @property
    def name(self) -> str:
        """Names the folder of the split that it makes."""
        return f"{self.rule}_beam{self.beam}" + ("" if self.of == "train" else f"_{self.of}")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the teacher writes targets for."""
        return ("train", "unlabelled") if self.of == "both" else (self.of,)

    def check(self) -> None:
        """Raises KdError for an unknown rule or a beam below 1."""
        if self.rule not in ("best", "nbest", "interpolated"):
            raise KdError(f"targets.rule: {self.rule!r}; wanted best, nbest or interpolated")
        if self.beam < 1:
            raise KdError(f"targets.beam: {self.beam}; wanted at least 1")
        if self.of not in ("train", "unlabelled", "both"):
            raise KdError(f"targets.of: {self.of!r}; wanted train, unlabelled or both")
        if self.rule == "interpolated" and self.of != "train":
            raise KdError(
                "targets.rule: interpolated chooses by the reference, and unlabelled text has none; wanted best"
            )

    def check_splits(self, splits: Collection[str]) -> None:
        """Raises KdError where the source has no text without references."""
        for split in self.splits:
            if split not in splits:
                raise KdError(f"targets.of: {self.of!r}; the source has no {split} text: give it some, or wanted train")

    def choose(
        self, hypotheses: Sequence[np.ndarray], logp: np.ndarray, closeness: Callable[[np.ndarray], float]
    ) -> list[tuple[np.ndarray, float]]:
        """(target ids, weight) pairs; the weights' mean is 1.

        Args:
          hypotheses: int32 ids of each, the end of the sentence included, best first; at least one.
          logp: float [len(hypotheses)], the teacher's log-probability of each.
          closeness: ids -> how near they are to the reference; asked by "interpolated" alone.
        """
        if self.rule == "best":
            return [(hypotheses[0], 1.0)]
        if self.rule == "interpolated":
            return [(max(hypotheses, key=closeness), 1.0)]
        share = np.exp(np.asarray(logp, np.float64) - np.max(logp))
        return list(zip(hypotheses, share / share.sum() * len(share), strict=True))


def pack_hypotheses(ids_KT: np.ndarray, logp_K: np.ndarray, eos: int) -> dict[str, np.ndarray]:
    """A record of NBEST from padded ids; hypotheses that never ended, and repeated ones, are left out."""
    hypotheses, logp, seen = [], [], set()
    for ids_T, score in zip(ids_KT.tolist(), logp_K, strict=True):
        if eos not in ids_T or tuple(ids_T) in seen:
            continue
        seen.add(tuple(ids_T))
        hypotheses.append(ids_T[: ids_T.index(eos) + 1])
        logp.append(score)
    flat = np.asarray([i for ids in hypotheses for i in ids], np.int32)
    return {
        "ids": flat,
        "lengths": np.asarray([len(x) for x in hypotheses], np.int32),
        "logp": np.asarray(logp, np.float32),
    }


def unpack_hypotheses(record: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The inverse of `pack_hypotheses`: ids of each, best first."""
    return np.split(record["ids"], np.cumsum(record["lengths"])[:-1]) if len(record["lengths"]) else []
