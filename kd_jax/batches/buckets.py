"""Padded lengths of examples, packing of examples into rows, and rows of a batch; arithmetic only."""

import array
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_jax.batches.layouts import Bucket, RowLayout

MAX_SCORES_BYTES = 256 * 2**20  # of one attention head's float32 scores for a batch outside training
OPEN_ROWS = 128  # rows that an example may be packed into; 128 are enough to fill rows to over 97%
MAX_LENGTH = 8192  # tokens of a prompt or completion: one head's scores of one such row fill MAX_SCORES_BYTES


def assign_buckets(lengths: np.ndarray, buckets: Sequence[Bucket], layout: RowLayout[Any]) -> np.ndarray:
    """Return the first of the ascending buckets that each example fits into; len(buckets) for none, int [N]."""
    sizes_NX, rooms_BX = layout.sizes(lengths), layout.sizes(np.asarray(buckets))
    fits = [np.searchsorted(room_B, sizes_N) for room_B, sizes_N in zip(rooms_BX.T, sizes_NX.T, strict=True)]
    return np.max(fits, axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows(Sequence[np.ndarray]):
    """The numbers of the examples in each row, uint32: of all rows, and where each row ends among them."""

    index_N: np.ndarray
    ends_R: np.ndarray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ends_R)

    def __getitem__(self, row: Any) -> np.ndarray:
        """Return the numbers of the examples in a row."""
        row = range(len(self))[row]
        return self.index_N[self.ends_R[row - 1] if row else 0 : self.ends_R[row]]


def pack_rows(sizes_NX: np.ndarray, room_X: np.ndarray, seed: int) -> PackedRows:
    """Assign examples to rows by best fit, in a random order of the examples, with at most OPEN_ROWS unfilled rows.

    Args:
      sizes_NX: int, tokens of each example on each of X sides, for example encoder and decoder.
      room_X: int, tokens that fit into a row on each side; no example may be larger.
      seed: decides the order, and so which examples share a row.

    Returns:
      PackedRows: the numbers of the examples in each row.

    References:
      Krell et al. 2021, arXiv 2107.02027.
    """
    free_OX = np.tile(room_X, (OPEN_ROWS, 1))
    num_opened = OPEN_ROWS
    row_O, closed = np.arange(OPEN_ROWS), array.array("I")
    order_N = np.random.default_rng(seed).permutation(len(sizes_NX))
    row_N = np.zeros(len(order_N), np.uint32)  # row of each example, in the order of order_N
    for n, i in enumerate(order_N):
        left_O = (free_OX - sizes_NX[i]).min(-1)
        best = np.where(left_O < 0, np.iinfo(left_O.dtype).max, left_O).argmin()
        if left_O[best] < 0:  # it fits into none: close the fullest row and open another
            best = free_OX.min(-1).argmin()
            closed.append(int(row_O[best]))
            row_O[best], free_OX[best], num_opened = num_opened, room_X, num_opened + 1
        row_N[n] = row_O[best]
        free_OX[best] -= sizes_NX[i]
    rank_R = np.zeros(num_opened, np.uint32)  # rows are numbered in the order in which they were closed
    rank_R[np.concatenate([np.asarray(closed, int), row_O])] = np.arange(num_opened)
    rank_N = rank_R[row_N]
    counts_R = np.bincount(rank_N, minlength=num_opened)
    index_N = order_N[np.argsort(rank_N, kind="stable")].astype(np.uint32)
    return PackedRows(index_N, np.cumsum(counts_R[counts_R > 0]).astype(np.uint32))


def padded_lengths(lengths: np.ndarray, buckets: Sequence[Bucket], layout: RowLayout[Any]) -> np.ndarray:
    """Return the first bucket that each example fits into, or the smallest multiple of the last one, int [N, 2]."""
    last = np.asarray(buckets[-1])
    fitting = np.asarray(buckets)[np.minimum(assign_buckets(lengths, buckets, layout), len(buckets) - 1)]
    multiple_N1 = (-(-layout.sizes(lengths) // layout.sizes(last))).max(-1, keepdims=True)
    return np.where(multiple_N1 > 1, multiple_N1 * last, fitting)


def rows_per_batch(batch_size: int, divisor: int, length: int) -> int:
    """Return `batch_size`, or fewer rows where one head's float32 scores would exceed MAX_SCORES_BYTES.

    The result is a multiple of `divisor`, at least one; `length` is the padded tokens of a row.
    """
    fitting = MAX_SCORES_BYTES // (4 * length**2)
    return max(1, min(-(-batch_size // divisor), fitting // divisor)) * divisor


def training_rows(tokens_per_batch: int, length: int) -> int:
    """Return the rows of a training batch whose rows have `length` padded target tokens; at least one."""
    return max(1, tokens_per_batch // length)


def padding_warning(field: str, tokens_per_batch: int, length: int, divisor: int) -> str:
    """Return a warning if more than a quarter of a training batch's rows are padding; else "".

    Args:
      field: name of the recipe, such as "students.student_kd".
      tokens_per_batch: padded target tokens of a batch.
      length: padded target tokens of a row.
      divisor: devices times microbatches; the number of rows is padded to a multiple of it.

    Examples:
      >>> padding_warning("teacher", tokens_per_batch=512, length=256, divisor=1)
      ''
      >>> padding_warning("teacher", tokens_per_batch=512, length=256, divisor=8)
      'teacher: 2 rows of 256 tokens a batch, padded to 8 for devices and microbatches: 75% of the work is on padding. \
Set --teacher.training.tokens_per_batch 2048.'
    """
    rows = training_rows(tokens_per_batch, length)
    padded = round_up(rows, divisor)
    if 4 * rows >= 3 * padded:
        return ""
    return (
        f"{field}: {rows} row{'s' * (rows > 1)} of {length} tokens a batch, padded to {padded} for devices and "
        f"microbatches: {1 - rows / padded:.0%} of the work is on padding. Set --{field}.training.tokens_per_batch "
        f"{padded * length}."
    )


def round_up(rows: int, divisor: int) -> int:
    """Return the smallest multiple of `divisor` that is at least `rows`."""
    return -(-rows // divisor) * divisor


def chunks(indices: np.ndarray, size: int) -> list[np.ndarray]:
    """Return consecutive chunks of `size` indices; the last one may be shorter."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]
