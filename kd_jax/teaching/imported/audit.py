"""What the files hold of a split: matched, missing, mass, and whether they look right."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kd_jax.teaching.imported.match import Match
from kd_jax.teaching.imported.readers.base import NO_TOKEN, LogprobRecord

SHIFTS = (-1, 0, 1)
COMPARED = 32  # of a record and its repeat
SUSPICIOUS = 2  # times better: a teacher that knows little repeats the token before, and that is no shift


@dataclasses.dataclass
class Audit:
    """Counts of one split, added up while files are read.

    Attributes:
      examples, targets: of the split; targets that count.
      matched, said: of these, those that the files speak of.
      fewest, most: tokens named of a target; fewest is 0 where nothing is said.
      whole: targets of which the whole vocabulary is named.
      mass: sum over said targets of the probabilities named, where they are log-probabilities.
      reciprocal_ranks: for each of SHIFTS the sum over positions of 1 / rank of the token so much beside the one
        that the position predicts, and 0 where that is not named.
      positions: of that sum.
      repeats: records of sequences that were there already.
      difference: the most that the log-probabilities of a repeat, less its likeliest's, differ from the first's.
    """

    examples: int
    targets: int
    matched: int = 0
    said: int = 0
    fewest: int = 2**31
    most: int = 0
    whole: int = 0
    mass: float = 0.0
    reciprocal_ranks: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(SHIFTS)))
    positions: int = 0
    repeats: int = 0
    difference: float = 0.0

    def add(self, ids_nK: np.ndarray, logp_nK: np.ndarray, vocab_size: int, normalised: bool) -> None:
        """An example's targets."""
        named_n = (ids_nK != NO_TOKEN).sum(-1)
        self.matched += 1
        self.said += int((named_n > 0).sum())
        self.fewest = min(self.fewest, int(named_n.min(initial=self.fewest)))
        self.most = max(self.most, int(named_n.max(initial=0)))
        self.whole += int((named_n == vocab_size).sum())
        if normalised:
            self.mass += float(np.exp(logp_nK.astype(np.float64)).sum())

    def add_ranks(self, stored: LogprobRecord, match: Match) -> None:
        """A record's positions, for the suspicion of a shift."""
        inner_N = (stored.target_N >= 1) & (stored.target_N < len(match.tokens_S) - 1)
        order_NK = np.argsort(-stored.logp_NK[inner_N], axis=-1, kind="stable")
        ids_NK = np.take_along_axis(np.where(stored.logp_NK > -np.inf, stored.ids_NK, NO_TOKEN)[inner_N], order_NK, -1)
        for s, shift in enumerate(SHIFTS):
            at_NK = ids_NK == match.tokens_S[stored.target_N[inner_N] + shift][:, None]
            self.reciprocal_ranks[s] += (at_NK / np.arange(1, ids_NK.shape[1] + 1)).sum()
        self.positions += int(inner_N.sum())

    def add_repeat(self, first: tuple[np.ndarray, np.ndarray], again: tuple[np.ndarray, np.ndarray]) -> None:
        """Another record of a sequence, (ids, logp) [n, K] of both."""
        self.repeats += 1
        (ids_nK, logp_nK), (ids_nX, logp_nX) = _less_likeliest(*first), _less_likeliest(*again)
        same_nKX = (ids_nK[:, :, None] == ids_nX[:, None, :]) & (ids_nK[:, :, None] != NO_TOKEN)
        with np.errstate(invalid="ignore"):
            apart_nKX = np.where(same_nKX, np.abs(logp_nK[:, :, None] - logp_nX[:, None, :]), 0.0)
        self.difference = max(self.difference, float(apart_nKX.max(initial=0.0)))

    def missing(self) -> float:
        """The share of the targets that nothing is said of."""
        return 1 - self.said / self.targets if self.targets else 0.0

    def tail(self, normalised: bool) -> str:
        """How the mass outside is known: "exact" where all is named, "by subtraction" from one, or "unknown"."""
        if self.said and self.whole == self.said:
            return "exact"
        return "by subtraction" if normalised else "unknown"

    def figures(self, normalised: bool) -> dict[str, Any]:
        """What a manifest keeps."""
        ranks = dict(zip(map(str, SHIFTS), (self.reciprocal_ranks / max(1, self.positions)).tolist(), strict=True))
        counts = {name: vars(self)[name] for name in ("examples", "targets", "matched", "said", "most", "repeats")}
        mass = self.mass / self.said if normalised and self.said else None
        return counts | {
            "fewest": min(self.fewest, self.most),
            "tail": self.tail(normalised),
            "mass_covered": mass,
            "mean_reciprocal_rank": ranks,
            "repeats_differ_by": self.difference,
        }


def lines(split: str, figures: Mapping[str, Any]) -> list[str]:
    """The audit of a split in words, a suspicion of a shift last.

    Args:
      split: its name.
      figures: as Audit.figures.
    """
    mass = figures["mass_covered"]
    said = [
        f"{split}: {figures['matched']:,} of {figures['examples']:,} examples, "
        f"{figures['said']:,} of {figures['targets']:,} targets; {figures['examples'] - figures['matched']:,} examples "
        f"and {figures['targets'] - figures['said']:,} targets missing",
        f"{split}: {figures['fewest']} to {figures['most']} tokens named of a target, "
        + ("their mass unknown" if mass is None else f"{mass:.2%} of the mass")
        + f"; the tail: {figures['tail']}",
    ]
    if figures["repeats"]:
        said.append(
            f"{split}: {figures['repeats']:,} records say again what others said; their log-probabilities differ by up "
            f"to {figures['repeats_differ_by']:.3g} nats"
        )
    ranks = figures["mean_reciprocal_rank"]
    best = max(ranks, key=lambda shift: ranks[shift])
    if ranks[best] > SUSPICIOUS * ranks["0"]:
        said.append(
            f"warning: {split}: shifted by {int(best):+d} the positions fit their tokens better (mean reciprocal rank "
            f"{ranks[best]:.2f} against {ranks['0']:.2f}); do the files mean another token than their format says?"
        )
    return said


def _less_likeliest(ids_nK: np.ndarray, logp_nK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The COMPARED likeliest of each position, less the largest; 0 where nothing is named."""
    order_nK = np.argsort(-logp_nK, axis=-1, kind="stable")[:, :COMPARED]
    ids_nK, logp_nK = (np.take_along_axis(x, order_nK, -1) for x in (ids_nK, logp_nK))
    largest_n1 = logp_nK.max(-1, keepdims=True, initial=-np.inf)
    return ids_nK, logp_nK - np.where(largest_n1 > -np.inf, largest_n1, 0.0)
