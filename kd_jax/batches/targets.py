"""Pseudo-targets: which of the teacher's hypotheses become targets, and their records on disk.

Kim and Rush 2016, arXiv 1606.07947, sections 3.2 and 3.3.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from kd_jax.config import MAX_BEAM, check_count
from kd_jax.errors import KdError
from kd_jax.types import Field

# A record of an n-best store: an example's concatenated hypotheses, their lengths and their log-probabilities.
NBEST = {"ids": Field((), "int32"), "lengths": Field((), "int32"), "logp": Field((), "float32")}
WEIGHT = {"weight": Field((), "float32")}  # of a target; the mean over an example's targets is 1


class WeightedTarget(NamedTuple):
    """A hypothesis that became a target: int32 [T] with the end token, and a factor on its losses."""

    ids: np.ndarray
    weight: float


@dataclasses.dataclass(frozen=True)
class PseudoTargets:
    """Which of the teacher's hypotheses become targets.

    Attributes:
      rule: "best": the hypothesis of the highest score. "nbest": all of them, each weighted by the teacher's
        probability, renormalised over them. "interpolated": the one closest to the reference (Seq-Inter, eq. 9), by
        the task's own measure.
      beam: width of the teacher's beam search, and number of hypotheses.
      of: the examples that the teacher writes targets for. "train": the training examples, whose references are
        replaced. "unlabelled": the examples without references, added to the training examples. "both": both.

    References:
      Kim and Rush 2016, arXiv 1606.07947, sections 3.2 and 3.3.

    Examples:
      >>> hypotheses, logp = [np.array([7, 8, 2]), np.array([9, 2])], np.log([0.3, 0.1])
      >>> targets = PseudoTargets("nbest", beam=2).choose(hypotheses, logp, closeness=len)
      >>> [(ids.tolist(), round(float(weight), 3)) for ids, weight in targets]
      [([7, 8, 2], 1.5), ([9, 2], 0.5)]
    """

    rule: Literal["best", "nbest", "interpolated"] = "best"
    beam: int = 4
    of: Literal["train", "unlabelled", "both"] = "train"

    @property
    def name(self) -> str:
        """The name of the folder that holds the split."""
        return f"{self.rule}_beam{self.beam}" + ("" if self.of == "train" else f"_{self.of}")

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that the teacher writes targets for."""
        return ("train", "unlabelled") if self.of == "both" else (self.of,)

    def check(self) -> None:
        """Check the fields."""
        if self.rule not in ("best", "nbest", "interpolated"):
            raise KdError(f"targets.rule: expected best, nbest or interpolated, got {self.rule!r}. Set targets.rule.")
        check_count("targets.beam", self.beam, 1, MAX_BEAM)
        if self.of not in ("train", "unlabelled", "both"):
            raise KdError(f"targets.of: expected train, unlabelled or both, got {self.of!r}. Set targets.of.")
        if self.rule == "interpolated" and self.of != "train":
            raise KdError(
                f"targets.rule: expected best or nbest with of={self.of}, got interpolated. Set targets.rule."
            )

    def check_splits(self, splits: Collection[str]) -> None:
        """Check that the source has the splits that targets are written for."""
        for split in self.splits:
            if split not in splits:
                raise KdError(
                    f"targets.of: expected a source with a split {split}, got {', '.join(splits)}. Set targets.of."
                )

    def choose(
        self, hypotheses: Sequence[np.ndarray], logp: np.ndarray, closeness: Callable[[np.ndarray], float]
    ) -> list[WeightedTarget]:
        """Return the targets that the rule chooses; the mean of their weights is 1.

        Args:
          hypotheses: int32 ids of each, the end of the sentence included, best first; at least one.
          logp: float [len(hypotheses)], the teacher's log-probability of each.
          closeness: ids -> similarity to the reference; called by the rule "interpolated" only.
        """
        if self.rule == "best":
            return [WeightedTarget(hypotheses[0], 1.0)]
        if self.rule == "interpolated":
            return [WeightedTarget(max(hypotheses, key=closeness), 1.0)]
        share = np.exp(np.asarray(logp, np.float64) - np.max(logp))
        return [WeightedTarget(*pair) for pair in zip(hypotheses, share / share.sum() * len(share), strict=True)]


def pack_hypotheses(ids_KT: np.ndarray, logp_K: np.ndarray, eos: int) -> dict[str, np.ndarray]:
    """Return a record of NBEST without unfinished and repeated hypotheses; `ids_KT` and `logp_K` are best first."""
    hypotheses, logp, seen = [], [], set()
    for ids_T, score in zip(ids_KT.tolist(), logp_K, strict=True):
        if eos not in ids_T or tuple(ids_T) in seen:
            continue
        seen.add(tuple(ids_T))
        hypotheses.append(ids_T[: ids_T.index(eos) + 1])
        logp.append(score)
    flat = np.asarray([i for ids in hypotheses for i in ids], np.int32)
    lengths = np.asarray([len(ids) for ids in hypotheses], np.int32)
    return {"ids": flat, "lengths": lengths, "logp": np.asarray(logp, np.float32)}


def unpack_hypotheses(record: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the ids of each hypothesis of a record of NBEST, best first."""
    return np.split(record["ids"], np.cumsum(record["lengths"])[:-1]) if len(record["lengths"]) else []
