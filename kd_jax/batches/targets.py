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
REFERENCES_SEED = 23  # not the experiment's: all runs of an ablation have the same references
OWN = {"own": Field((), "uint8")}  # of an example: 1 if its target is a text of the student's own
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
        replaced. "unlabelled": the examples without references, added to the training examples. "both": both. For a
        model with a share of the references (Recipe.references), the other training examples have none.

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


class TrainTargets(NamedTuple):
    """The targets of a model's training examples.

    Attributes:
      pseudo: rule for the teacher's texts; None for references.
      references: number of training examples that have a reference; 0 for all. With references alone it is 0 too, since
        a model then reads some examples of the data's own split (`references_mask`).

    Examples:
      >>> TrainTargets().name, TrainTargets(PseudoTargets(of="both"), 2000).name
      ('', 'best_beam4_both_2000references')
    """

    pseudo: PseudoTargets | None = None
    references: int = 0

    @property
    def name(self) -> str:
        """The name of the folder that holds the split; "" for the data's own."""
        if not self.pseudo:
            return ""
        rule, beam, of = self.pseudo.rule, self.pseudo.beam, self.pseudo.of
        suffix = "" if of == "train" else f"_{of}"
        return f"{rule}_beam{beam}{suffix}" + (f"_{self.references}references" if self.references else "")

    def splits(self, available: Collection[str]) -> tuple[str, ...]:
        """Return the names of the data's splits that the teacher writes texts for.

        Args:
          available: the names of the data's splits.

        Raises:
          KdError: if the data has no such examples.
        """
        if not self.pseudo:
            return ()
        if self.references and self.pseudo.of != "train":  # training examples without a reference are unlabelled too
            return ("train", "unlabelled") if "unlabelled" in available else ("train",)
        wanted = ("train", "unlabelled") if self.pseudo.of == "both" else (self.pseudo.of,)
        for split in wanted:
            if split not in available:
                raise KdError(
                    f"targets.of: expected a source with a split {split}, got {', '.join(available)}. Set "
                    "targets.of, or give the model a share of the references, such as references=2000."
                )
        return wanted

    def check(self, counts: Mapping[str, int]) -> None:
        """Check that the data has such examples; `counts` is split -> number of examples."""
        check_references(self.references, counts["train"])
        self.splits(counts)


def check_references(references: int, examples: int) -> None:
    """Check that a model's share of the references is not larger than the number of training examples."""
    if references > examples:
        raise KdError(
            f"references: expected at most the {examples} training examples, got {references}. Lower it, or set 0 for "
            "all."
        )


def references_mask(owners_N: np.ndarray, examples: int, references: int) -> np.ndarray:
    """Return which records a model has the reference of, bool [N].

    The same examples for every seed and model; those of a smaller number are among those of a larger one.

    Args:
      owners_N: the number of the example that each record is a part of, int [N].
      examples: number of examples in the split.
      references: number of examples with a reference; 0 for all.

    Examples:
      >>> references_mask(np.array([0, 0, 1, 2]), examples=3, references=1)
      array([False, False, False,  True])
    """
    check_references(references, examples)
    if not references:
        return np.ones(len(owners_N), bool)
    mask = np.zeros(examples, bool)
    mask[np.random.default_rng(REFERENCES_SEED).permutation(examples)[:references]] = True
    return mask[owners_N]


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
