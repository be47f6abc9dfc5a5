"""The audit of files of log-probabilities: matched examples, missing targets, mass, and signs of a wrong format."""

import dataclasses

import numpy as np

from kd_jax.teaching.imported.match import Match, TargetLogprobs
from kd_jax.teaching.imported.readers.base import NO_TOKEN, LogprobRecord

SHIFTS = (-1, 0, 1)
COMPARED = 32  # most likely tokens of a record that are compared with a repeated record
SHIFT_RATIO = 2  # a shift that fits so many times better is reported; weak teachers often repeat the token before


@dataclasses.dataclass(frozen=True)
class AuditFigures:
    """The audit of one split, as a manifest records it: its examples and targets that count.

    Attributes:
      matched: examples that are in the files.
      covered: targets that are in the files.
      min_named: fewest tokens named for a covered target.
      max_named: most tokens named for a target.
      tail: how the mass outside the named tokens is known: "exact", "by subtraction" or "unknown".
      mass_covered: mean probability of the named tokens; None for logits.
      mean_reciprocal_rank: shift -> mean of 1 / rank of the token so far from the one that a position predicts.
      repeats: records of sequences that other records have too.
      repeats_differ_by: largest difference between log-probabilities of a repeat, in nats.
    """

    examples: int
    targets: int
    matched: int
    covered: int
    min_named: int
    max_named: int
    tail: str
    mass_covered: float | None
    mean_reciprocal_rank: dict[str, float]
    repeats: int
    repeats_differ_by: float

    def lines(self, split: str) -> list[str]:
        """Return the audit as text, with a warning at the end where positions seem shifted."""
        lines = [
            f"{split}: {self.matched:,} of {self.examples:,} examples, {self.covered:,} of {self.targets:,} targets; "
            f"{self.examples - self.matched:,} examples and {self.targets - self.covered:,} targets missing",
            f"{split}: {self.min_named} to {self.max_named} tokens named per target, "
            + ("mass unknown" if self.mass_covered is None else f"{self.mass_covered:.2%} of the mass")
            + f"; tail: {self.tail}",
        ]
        if self.repeats:
            lines.append(
                f"{split}: {self.repeats:,} repeated records; their log-probabilities differ by up to "
                f"{self.repeats_differ_by:.3g} nats"
            )
        ranks = self.mean_reciprocal_rank
        best = max(ranks, key=lambda shift: ranks[shift])
        if ranks[best] > SHIFT_RATIO * ranks["0"]:
            lines.append(
                f"warning: {split}: the positions fit their tokens better shifted by {int(best):+d} (mean reciprocal "
                f"rank {ranks[best]:.2f} instead of {ranks['0']:.2f}). Check --format and --sequence."
            )
        return lines


@dataclasses.dataclass
class Audit:
    """Counts of one split, added up while files are read; see `AuditFigures`.

    Attributes:
      full_vocabulary: targets for which every token of the vocabulary is named.
      mass: sum over covered targets of the named tokens' probabilities, for log-probabilities.
      reciprocal_ranks: for each of SHIFTS a sum over positions; 0 where that token is not named.
      positions: number of positions in these sums.
      difference: largest difference between log-probabilities of a repeat, relative to the most likely token's.
    """

    examples: int
    targets: int
    matched: int = 0
    covered: int = 0
    min_named: int = 2**31
    max_named: int = 0
    full_vocabulary: int = 0
    mass: float = 0.0
    reciprocal_ranks: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(SHIFTS)))
    positions: int = 0
    repeats: int = 0
    difference: float = 0.0

    def add(self, logprobs: TargetLogprobs, vocab_size: int, normalised: bool) -> None:
        """Add an example's targets."""
        named_n = (logprobs.ids_nK != NO_TOKEN).sum(-1)
        self.matched += 1
        self.covered += int((named_n > 0).sum())
        self.min_named = min(self.min_named, int(named_n.min(initial=self.min_named)))
        self.max_named = max(self.max_named, int(named_n.max(initial=0)))
        self.full_vocabulary += int((named_n == vocab_size).sum())
        if normalised:
            self.mass += float(np.exp(logprobs.logp_nK.astype(np.float64)).sum())

    def add_ranks(self, record: LogprobRecord, match: Match) -> None:
        """Add a record's positions to the detection of a shift."""
        inner_N = (record.target_N >= 1) & (record.target_N < len(match.tokens_S) - 1)
        order_NK = np.argsort(-record.logp_NK[inner_N], axis=-1, kind="stable")
        ids_NK = np.take_along_axis(np.where(record.logp_NK > -np.inf, record.ids_NK, NO_TOKEN)[inner_N], order_NK, -1)
        for s, shift in enumerate(SHIFTS):
            hit_NK = ids_NK == match.tokens_S[record.target_N[inner_N] + shift][:, None]
            self.reciprocal_ranks[s] += (hit_NK / np.arange(1, ids_NK.shape[1] + 1)).sum()
        self.positions += int(inner_N.sum())

    def add_repeat(self, first: TargetLogprobs, repeat: TargetLogprobs) -> None:
        """Add another record of a sequence that was added before."""
        self.repeats += 1
        (ids_nK, logp_nK), (ids_nX, logp_nX) = _relative_to_largest(first), _relative_to_largest(repeat)
        same_nKX = (ids_nK[:, :, None] == ids_nX[:, None, :]) & (ids_nK[:, :, None] != NO_TOKEN)
        with np.errstate(invalid="ignore"):
            apart_nKX = np.where(same_nKX, np.abs(logp_nK[:, :, None] - logp_nX[:, None, :]), 0.0)
        self.difference = max(self.difference, float(apart_nKX.max(initial=0.0)))

    def missing(self) -> float:
        """Return the share of the targets that are not in the files."""
        return 1 - self.covered / self.targets if self.targets else 0.0

    def figures(self, normalised: bool) -> AuditFigures:
        """Return the figures."""
        ranks = (self.reciprocal_ranks / max(1, self.positions)).tolist()
        tail = "by subtraction" if normalised else "unknown"
        if self.covered and self.full_vocabulary == self.covered:
            tail = "exact"
        return AuditFigures(
            examples=self.examples,
            targets=self.targets,
            matched=self.matched,
            covered=self.covered,
            min_named=min(self.min_named, self.max_named),
            max_named=self.max_named,
            tail=tail,
            mass_covered=self.mass / self.covered if normalised and self.covered else None,
            mean_reciprocal_rank=dict(zip(map(str, SHIFTS), ranks, strict=True)),
            repeats=self.repeats,
            repeats_differ_by=self.difference,
        )


def _relative_to_largest(logprobs: TargetLogprobs) -> TargetLogprobs:
    """Return the COMPARED most likely tokens of each position, less the largest; unchanged where nothing is named."""
    order_nK = np.argsort(-logprobs.logp_nK, axis=-1, kind="stable")[:, :COMPARED]
    ids_nK, logp_nK = (np.take_along_axis(x, order_nK, -1) for x in logprobs)
    largest_n1 = logp_nK.max(-1, keepdims=True, initial=-np.inf)
    return TargetLogprobs(ids_nK, logp_nK - np.where(largest_n1 > -np.inf, largest_n1, 0.0))
