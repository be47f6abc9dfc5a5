"""Which padded length an example gets, which examples share a row, and how many rows fit a batch: arithmetic alone."""

import array
import dataclasses
from collections.abc import Sequence

import numpy as np

from kd_jax.batches.layouts import Bucket, Layout

# Where examples are taken whole however long they are, an attention's scores of one batch stay below this.
SCORES_BYTES = 256 * 2**20
OPEN_ROWS = 128  # that an example may be packed into: with as many, rows are over 97% full
LONGEST = 8192  # tokens of a prompt or completion: one head's scores of one such row fill SCORES_BYTES


def place(lengths: np.ndarray, buckets: Sequence[Bucket], layout: Layout) -> np.ndarray:
    """The first bucket that holds each example; len(buckets) where none does.

    Examples:
      >>> from kd_jax.batches.layouts import DecoderOnlyLayout, EncoderDecoderLayout
      >>> lengths, buckets = np.array([[3, 9], [9, 3], [20, 3]]), [Bucket(4, 4), Bucket(12, 12)]
      >>> place(lengths, buckets, EncoderDecoderLayout).tolist()  # each side in room of its own
      [1, 1, 2]
      >>> place(lengths, buckets, DecoderOnlyLayout).tolist()  # in rows of 8 and of 24
      [1, 1, 1]
    """
    sizes_NX, rooms = layout.sizes(lengths), layout.sizes(np.asarray(buckets))
    return np.max([np.searchsorted(room, sizes_N) for room, sizes_N in zip(rooms.T, sizes_NX.T, strict=True)], axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Packed(Sequence):
    """The numbers of the examples in each row, end to end.

    Attributes:
      numbers_N: uint32, of all examples, row by row.
      ends_R: uint32, where each row ends among them.
    """

    numbers_N: np.ndarray
    ends_R: np.ndarray

    def __len__(self) -> int:
        return len(self.ends_R)

    def __getitem__(self, row: int) -> np.ndarray:
        row = range(len(self))[row]
        return self.numbers_N[self.ends_R[row - 1] if row else 0 : self.ends_R[row]]


def pack(sizes_NX: np.ndarray, room_X: np.ndarray, seed: int) -> Packed:
    """Examples side by side in rows that they nearly fill: best fit, in a random order, among a few open rows.

    Args:
      sizes_NX: int, what each example takes of a row's room, on each side.
      room_X: int, a row's room; no example takes more.
      seed: decides the order, and so which examples share a row.

    Returns:
      The numbers of the examples of each row; each example is in one.

    References:
      Krell et al. 2021, arXiv 2107.02027.

    Examples:
      >>> rows = pack(np.array([[6], [4], [7], [3]]), np.array([10]), seed=0)
      >>> sorted(sorted(row.tolist()) for row in rows)
      [[0, 1], [2, 3]]
    """
    free_OX = np.tile(room_X, (OPEN_ROWS, 1))
    opened = OPEN_ROWS  # rows that were opened so far; row_O: which of them are open
    row_O, closed = np.arange(OPEN_ROWS), array.array("I")
    order_N = np.random.default_rng(seed).permutation(len(sizes_NX))
    row_N = np.zeros(len(order_N), np.uint32)  # in that order
    for n, i in enumerate(order_N):
        left_O = (free_OX - sizes_NX[i]).min(-1)
        fullest = np.where(left_O < 0, np.iinfo(left_O.dtype).max, left_O).argmin()
        if left_O[fullest] < 0:  # it fits in none: the fullest is closed
            fullest = free_OX.min(-1).argmin()
            closed.append(row_O[fullest])
            row_O[fullest], free_OX[fullest], opened = opened, room_X, opened + 1
        row_N[n] = row_O[fullest]
        free_OX[fullest] -= sizes_NX[i]
    place_R = np.zeros(opened, np.uint32)  # rows in the order in which they were closed
    place_R[np.concatenate([np.asarray(closed, int), row_O])] = np.arange(opened)
    place_N = place_R[row_N]
    counts_R = np.bincount(place_N, minlength=opened)
    numbers_N = order_N[np.argsort(place_N, kind="stable")].astype(np.uint32)
    return Packed(numbers_N, np.cumsum(counts_R[counts_R > 0]).astype(np.uint32))


def padded_lengths(lengths: np.ndarray, buckets: Sequence[Bucket], layout: Layout) -> np.ndarray:
    """The first bucket that holds each example, or the smallest multiple of the last one; int [examples, 2].

    Examples:
      >>> from kd_jax.batches.layouts import EncoderDecoderLayout
      >>> padded_lengths(np.array([[3, 9], [30, 3]]), [Bucket(4, 4), Bucket(12, 12)], EncoderDecoderLayout).tolist()
      [[12, 12], [36, 36]]
    """
    last = np.asarray(buckets[-1])
    fitting = np.asarray(buckets)[np.minimum(place(lengths, buckets, layout), len(buckets) - 1)]
    times = (-(-layout.sizes(lengths) // layout.sizes(last))).max(-1, keepdims=True)
    return np.where(times > 1, times * last, fitting)


def rows_within(batch_size: int, divisor: int, length: int) -> int:
    """Rows of a batch: `batch_size`, or as many as keep a head's float32 scores within SCORES_BYTES.

    At least `divisor`, and a multiple of it.

    Examples:
      >>> rows_within(64, 1, 36), rows_within(64, 1, 4096)
      (64, 4)
    """
    fitting = SCORES_BYTES // (4 * length**2)
    return max(1, min(-(-batch_size // divisor), fitting // divisor)) * divisor


def filled(rows: int, divisor: int) -> int:
    """Rows of a batch that empty ones fill up to a multiple of `divisor`.

    Examples:
      >>> filled(25, 4), filled(25, 64)
      (28, 64)
    """
    return -(-rows // divisor) * divisor


def cut(indices: np.ndarray, size: int) -> list[np.ndarray]:
    """Parts of that size, the last one perhaps shorter."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]
