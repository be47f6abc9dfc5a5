"""Which examples a stored sequence is, by its token ids, and which position says what of which target."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kd_jax.batches.pipeline import Split
from kd_jax.errors import KdError
from kd_jax.tasks.base import Encoded
from kd_jax.teaching.imported.readers.base import NO_TOKEN, LogprobRecord

Key = bytes


class Marks(NamedTuple):
    """The ids that may stand around an example's, as the tokeniser has them."""

    start: int
    eos: int
    pad: int


class Match(NamedTuple):
    """The examples of one stored sequence.

    Attributes:
      numbers: of the examples in their split.
      tokens_S: the sequence, without padding.
      offset: where the example's first token stands in it.
    """

    numbers: list[int]
    tokens_S: np.ndarray
    offset: int


class Examples:
    """The examples of a split by their token ids."""

    def __init__(self, split: Split, sequence: str, marks: Marks):
        """Args: sequence: as LogprobSource.sequence."""
        self.split, self._sequence, self._marks = split, sequence, marks
        self._numbers: dict[Key, list[int]] = {}
        for i in range(len(split)):
            self._numbers.setdefault(_key(self.tokens(split.read(i).encoded)), []).append(i)

    def tokens(self, encoded: Encoded) -> np.ndarray:
        """The ids by which an example is found, int32."""
        whole = np.concatenate([encoded.prompt, encoded.completion])
        return encoded.completion if self._sequence == "completion" else whole

    def targets(self, encoded: Encoded) -> np.ndarray:
        """Which of these ids count, int [n]."""
        return np.flatnonzero(encoded.counts[-len(self.tokens(encoded)) :])

    def find(self, stored: LogprobRecord) -> Match | None:
        """The examples that are this sequence, with or without the start and the end of the text; None for none.

        Raises:
          KdError: if it is the completion of examples with different prompts.
        """
        for tokens_S, offset, ids in variants(stored.tokens_S, self._marks):
            if _key(ids) in self._numbers:
                numbers = self._numbers[_key(ids)]
                self._refuse_other_prompts(stored.where, numbers)
                return Match(numbers, tokens_S, offset)
        return None

    def _refuse_other_prompts(self, where: str, numbers: list[int]) -> None:
        prompts = {self.split.read(i).encoded.prompt.tobytes() for i in numbers} if len(numbers) > 1 else {}
        if self._sequence == "completion" and len(prompts) > 1:
            raise KdError(
                f"{where}: its ids are the completions of examples {numbers[0]} and {numbers[1]}, whose prompts "
                "differ; wanted files with the prompt's ids, and --sequence whole"
            )


def variants(tokens_S: np.ndarray, marks: Marks) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """(ids without padding behind them, offset, ids as an example's) of every way in which they may be stored.

    Examples:
      >>> [(offset, ids.tolist()) for _, offset, ids in variants(np.array([1, 7, 8, 0]), Marks(1, 2, 0))]
      [(0, [1, 7, 8]), (0, [1, 7, 8, 2]), (1, [7, 8]), (1, [7, 8, 2])]
    """
    there = np.flatnonzero(tokens_S != marks.pad)
    tokens_S = tokens_S[: there[-1] + 1 if len(there) else 0]
    for offset in (0, 1) if len(tokens_S) and tokens_S[0] == marks.start else (0,):
        yield tokens_S, offset, tokens_S[offset:]
        yield tokens_S, offset, np.append(tokens_S[offset:], marks.eos)


def said_of(stored: LogprobRecord, targets_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [n, K], logp float32 [n, K]) of these tokens of the sequence; nothing named where nothing is said."""
    row_T = np.full(max(stored.target_N.max(initial=0), targets_n.max(initial=0)) + 1, -1)
    row_T[stored.target_N] = np.arange(len(stored.target_N))
    row_n = row_T[targets_n]
    shape = (len(targets_n), stored.ids_NK.shape[1])
    ids_nK, logp_nK = np.full(shape, NO_TOKEN, np.int32), np.full(shape, -np.inf, np.float32)
    ids_nK[row_n >= 0], logp_nK[row_n >= 0] = stored.ids_NK[row_n[row_n >= 0]], stored.logp_NK[row_n[row_n >= 0]]
    return ids_nK, logp_nK


def _key(ids: np.ndarray) -> Key:
    return ids.astype("<i4").tobytes()
