"""Lazy random-access examples: a split in a file or a dataset takes a few bytes per example.

A split is a sequence of examples: a list, or `Rows`. A slice of either is a list. Pickled `Rows` contain the location
of the examples, not their text, so every worker process reads its own.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kd_jax.runtime import progress
from kd_jax.types import Example

CHUNK = 1024  # examples per read


class Rows(Sequence):
    """Examples by number. A subclass implements `__len__` and `read`; equality compares the examples."""

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """Return the examples with these numbers (int [N]), in their order."""
        raise NotImplementedError

    def __getitem__(self, i: Any) -> Any:
        """Return an example, or the list of examples of a slice."""
        if isinstance(i, slice):
            return self.read(np.arange(*i.indices(len(self))))
        return self.read(np.asarray([range(len(self))[i]]))[0]  # the range checks bounds and resolves negative numbers

    def __iter__(self) -> Iterator[Example]:
        """Yield all examples, read in chunks."""
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has the same examples."""
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as of a list


def read(rows: Sequence[Example], numbers_N: np.ndarray) -> list[Example]:
    """Return the examples of a list or of Rows with these numbers (int [N]), in their order."""
    return rows.read(numbers_N) if isinstance(rows, Rows) else [rows[i] for i in numbers_N.tolist()]


def with_progress(rows: Sequence[Example], title: str) -> Iterator[Example]:
    """Yield all examples under a progress bar."""
    with progress.bar(title, len(rows)) as bar:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            yield from chunk
            bar.advance(len(chunk))


@dataclasses.dataclass(frozen=True, eq=False)
class Subset(Rows):
    """The examples of other rows with some numbers, int [N]."""

    rows: Sequence[Example]
    numbers: np.ndarray

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.numbers)

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """Return the examples with these numbers."""
        return read(self.rows, self.numbers[numbers_N])


def subset(rows: Sequence[Example], numbers_N: np.ndarray) -> Subset:
    """Return the examples with these numbers; four bytes each, or eight beyond 2^32 examples."""
    return Subset(rows, numbers_N.astype(np.uint32 if len(rows) <= 2**32 else np.uint64))


@dataclasses.dataclass(frozen=True, eq=False)
class MappedRows(Rows):
    """The values of a picklable function for the examples of other rows."""

    rows: Sequence[Example]
    function: Callable[[Example], Example]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.rows)

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """Return the examples with these numbers."""
        return [self.function(row) for row in read(self.rows, numbers_N)]


class SelectFields:
    """A picklable function that selects fields of an example, in their order."""

    def __init__(self, *fields: str):
        """Select these fields."""
        self._fields = fields

    def __call__(self, row: Example) -> Example:
        """Return the selected fields of an example."""
        return {field: row[field] for field in self._fields}


class ConcatenatedRows(Rows):
    """The examples of several parts, one part after the other."""

    def __init__(self, *parts: Sequence[Example]):
        """Concatenate these parts."""
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=int)

    def __len__(self) -> int:
        """Return the number of examples."""
        return int(self._ends[-1])

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """Return the examples with these numbers, with one read per part."""
        part_N = np.searchsorted(self._ends, numbers_N, side="right")
        examples: dict[int, Example] = {}
        for i in np.unique(part_N):
            here = np.flatnonzero(part_N == i)
            part = self._parts[i]
            examples |= zip(here.tolist(), read(part, numbers_N[here] - self._ends[i] + len(part)), strict=True)
        return [examples[i] for i in range(len(part_N))]


def interleave(*parts: Sequence[Example]) -> Subset:
    """Return one example of each part, then the next of each, until all parts end.

    Examples:
      >>> list(interleave([{"en": "a"}, {"en": "b"}, {"en": "c"}], [{"en": "x"}]))
      [{'en': 'a'}, {'en': 'x'}, {'en': 'b'}, {'en': 'c'}]
    """
    turns_N = np.concatenate([np.arange(len(part)) for part in parts])
    return subset(ConcatenatedRows(*parts), np.argsort(turns_N, kind="stable"))


def sample(rows: Sequence[Example], characters: int) -> Sequence[Example]:
    """Return uniformly drawn examples with at most `characters` characters (0 for all) in all fields, in their order.

    The draw depends on the number of examples and their lengths only. There is at least one example.
    """
    if not characters:
        return rows
    order, left, drawn = np.random.default_rng(0).permutation(len(rows)), characters, 0
    for start in range(0, len(order), CHUNK):
        for row in read(rows, order[start : start + CHUNK]):
            left -= sum(map(len, row.values()))
            if left < 0:
                return subset(rows, np.sort(order[: max(drawn, 1)]))
            drawn += 1
    return rows
