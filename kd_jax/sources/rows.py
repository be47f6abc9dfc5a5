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

    def __len__(self) -> int:
        """Return the number of examples."""
        raise NotImplementedError

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
    """The examples of other rows with some numbers.

    Attributes:
      rows: the other rows.
      numbers: int [N].

    Examples:
      >>> rows = Subset([{"en": "a"}, {"en": "b"}, {"en": "c"}], np.array([0, 2]))
      >>> len(rows), rows[-1], rows[:1]
      (2, {'en': 'c'}, [{'en': 'a'}])
    """

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
    """A function's values for the examples of other rows.

    Attributes:
      rows: the other rows.
      function: of one example; picklable.

    Examples:
      >>> MappedRows([{"en": "a", "fr": "b"}], SelectFields("en"))[0]
      {'en': 'a'}
    """

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
    """The examples of several parts, one part after the other.

    Examples:
      >>> list(ConcatenatedRows([{"en": "a"}], [{"en": "b"}, {"en": "c"}]))
      [{'en': 'a'}, {'en': 'b'}, {'en': 'c'}]
    """

    def __init__(self, *parts: Sequence[Example]):
        """Concatenate these parts."""
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=int)

    def __len__(self) -> int:
        """Return the number of examples."""
        return int(self._ends[-1])

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """Return the examples with these numbers."""
        part_N = np.searchsorted(self._ends, numbers_N, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        return _read_parts(self._parts, part_N, numbers_N - starts[part_N])


class InterleavedRows(Rows):
    """One example of each part, then the next of each, until all parts end.

    Examples:
      >>> list(InterleavedRows([{"en": "a"}, {"en": "b"}, {"en": "c"}], [{"en": "x"}]))
      [{'en': 'a'}, {'en': 'x'}, {'en': 'b'}, {'en': 'c'}]
    """

    def __init__(self, *parts: Sequence[Example]):
        """Interleave these parts."""
        self._parts = parts
        lengths = np.asarray([len(part) for part in parts])
        # Between two of the lengths, the same parts take turns. Of each such stretch: its first turn, its parts, and
        # the number of its first example.
        self._turns = np.unique([0, *lengths])[:-1]
        self._active = [np.flatnonzero(lengths > turn) for turn in self._turns]
        self._starts = np.asarray([np.minimum(lengths, turn).sum() for turn in self._turns], int)

    def __len__(self) -> int:
        """Return the number of examples."""
        return sum(map(len, self._parts))

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """Return the examples with these numbers."""
        part_N, number_N = np.zeros(len(numbers_N), int), np.zeros(len(numbers_N), int)
        stretch_N = np.searchsorted(self._starts, numbers_N, side="right") - 1
        for stretch, (turn, active, start) in enumerate(zip(self._turns, self._active, self._starts, strict=True)):
            here = stretch_N == stretch
            number_N[here], which = np.divmod(numbers_N[here] - start, len(active))
            number_N[here] += turn
            part_N[here] = active[which]
        return _read_parts(self._parts, part_N, number_N)


def _read_parts(parts: Sequence[Sequence[Example]], part_N: np.ndarray, number_N: np.ndarray) -> list[Example]:
    """Return example number_N[i] of parts[part_N[i]] for every i, with one read per part."""
    examples: dict[int, Example] = {}
    for part in np.unique(part_N):
        here = np.flatnonzero(part_N == part)
        examples |= zip(here.tolist(), read(parts[part], number_N[here]), strict=True)
    return [examples[i] for i in range(len(part_N))]


def sample(rows: Sequence[Example], characters: int) -> Sequence[Example]:
    """Return uniformly drawn examples with at most `characters` characters in all, in their order.

    The draw depends on the number of examples and their lengths only. There is at least one example. Memory: a few
    bytes per example.

    Args:
      rows: examples to draw from.
      characters: sum of the lengths of all fields; 0 for all examples.

    Examples:
      >>> rows = [{"en": "four"}] * 10
      >>> len(sample(rows, 12)), len(sample(rows, 40)), len(sample(rows, 0))
      (3, 10, 10)
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
