"""Match stored sequences to examples by their token ids, and stored positions to targets."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kd_jax.batches.pipeline import Examples
from kd_jax.errors import KdError
from kd_jax.tasks.base import Encoded
from kd_jax.teaching.imported.base import SequenceKind
from kd_jax.teaching.imported.readers.base import NO_TOKEN, LogprobRecord


class SpecialIds(NamedTuple):
    """The tokeniser's ids that may stand around an example's ids in a file."""

    start: int
    eos: int
    pad: int


class TargetLogprobs(NamedTuple):
    """Log-probabilities at an example's n targets that count; NO_TOKEN and -inf where nothing is named."""

    ids_nK: np.ndarray
    logp_nK: np.ndarray


class Match(NamedTuple):
    """The examples of one stored sequence (without padding); `offset` is where their first token stands in it."""

    indices: list[int]
    tokens_S: np.ndarray
    offset: int


class ExampleIndex:
    """The examples of a split by their token ids."""

    def __init__(self, examples: Examples, sequence: SequenceKind, special: SpecialIds):
        """Read all examples."""
        self.examples, self._sequence, self._special = examples, sequence, special
        self._indices: dict[bytes, list[int]] = {}
        for i in range(len(examples)):
            self._indices.setdefault(_key(self.tokens(examples.read(i).encoded)), []).append(i)

    def tokens(self, encoded: Encoded) -> np.ndarray:
        """Return the ids by which an example is found, int32."""
        if self._sequence == "completion":
            return encoded.completion
        return np.concatenate([encoded.prompt, encoded.completion])

    def targets(self, encoded: Encoded) -> np.ndarray:
        """Return the positions in `tokens` of the targets that count, int [n]."""
        return np.flatnonzero(encoded.counts[-len(self.tokens(encoded)) :])

    def find(self, record: LogprobRecord) -> Match | None:
        """Return the examples with the record's sequence, with or without start and end tokens; None for no example."""
        for tokens_S, offset, ids in stored_variants(record.tokens_S, self._special):
            indices = self._indices.get(_key(ids))
            if indices is not None:
                whole = self._sequence == "whole"
                if not whole and len({self.examples.read(i).encoded.prompt.tobytes() for i in indices}) > 1:
                    raise KdError(
                        f"{record.where}: expected the completion of one prompt, got that of examples {indices[0]} and "
                        f"{indices[1]}, whose prompts differ. Store the prompt's ids too, and set --sequence whole."
                    )
                return Match(indices, tokens_S, offset)
        return None


def stored_variants(tokens_S: np.ndarray, special: SpecialIds) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Yield (ids without padding at the end, offset, ids of an example) for every way to store an example.

    Examples:
      >>> [(offset, ids.tolist()) for _, offset, ids in stored_variants(np.array([1, 7, 8, 0]), SpecialIds(1, 2, 0))]
      [(0, [1, 7, 8]), (0, [1, 7, 8, 2]), (1, [7, 8]), (1, [7, 8, 2])]
    """
    unpadded = np.flatnonzero(tokens_S != special.pad)
    tokens_S = tokens_S[: unpadded[-1] + 1 if len(unpadded) else 0]
    for offset in (0, 1) if len(tokens_S) and tokens_S[0] == special.start else (0,):
        yield tokens_S, offset, tokens_S[offset:]
        yield tokens_S, offset, np.append(tokens_S[offset:], special.eos)


def target_logprobs(record: LogprobRecord, targets_n: np.ndarray) -> TargetLogprobs:
    """Return the record's log-probabilities at some of its tokens; nothing is named where it lacks a position."""
    row_T = np.full(max(record.target_N.max(initial=0), targets_n.max(initial=0)) + 1, -1)
    row_T[record.target_N] = np.arange(len(record.target_N))
    row_n = row_T[targets_n]
    shape = (len(targets_n), record.ids_NK.shape[1])
    ids_nK, logp_nK = np.full(shape, NO_TOKEN, np.int32), np.full(shape, -np.inf, np.float32)
    covered_n = row_n >= 0
    ids_nK[covered_n], logp_nK[covered_n] = record.ids_NK[row_n[covered_n]], record.logp_NK[row_n[covered_n]]
    return TargetLogprobs(ids_nK, logp_nK)


def _key(ids: np.ndarray) -> bytes:
    return ids.astype("<i4").tobytes()
