"""Examples by number that stay where they are, in a file or a dataset: a split takes a few bytes an example.

A split is a Sequence of examples: a list, or Rows. A slice of either is a list, read at once. What is pickled of Rows
is the way to the examples, so that every process reads its own.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.runtime import progress

Example = Mapping[str, str]
CHUNK = 1024  # examples read at a time


class Rows(Sequence):
    """Examples by number; a subclass says how many there are, and reads some. Equal to what has the same examples."""

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """The examples of these numbers, int [N], in their order."""
        raise NotImplementedError

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.read(np.arange(*i.indices(len(self))))
        return self.read(np.asarray([range(len(self))[i]]))[0]  # a range counts from the end too, and knows its own

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None


def read(rows: Sequence[Example], numbers_N: np.ndarray) -> list[Example]:
    """Those examples of a list or of Rows, in the order of their numbers."""
    return rows.read(numbers_N) if isinstance(rows, Rows) else [rows[i] for i in numbers_N.tolist()]


def with_progress(rows: Sequence[Example], title: str) -> Iterator[Example]:
    """All examples, under a bar."""
    with progress.bar(title, len(rows)) as bar:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            yield from chunk
            bar.advance(len(chunk))


@dataclasses.dataclass(frozen=True, eq=False)
class Subset(Rows):
    """Some examples of others, by their numbers.

    Examples:
      >>> rows = Subset([{"en": "a"}, {"en": "b"}, {"en": "c"}], np.array([0, 2]))
      >>> len(rows), rows[-1], rows[:1]
      (2, {'en': 'c'}, [{'en': 'a'}])
    """

    rows: Sequence[Example]
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """As Rows.read."""
        return read(self.rows, self.numbers[numbers_N])


def subset(rows: Sequence[Example], numbers_N: np.ndarray) -> Subset:
    """Those examples, in four bytes each where that does."""
    return Subset(rows, numbers_N.astype(np.uint32 if len(rows) <= 2**32 else np.uint64))


@dataclasses.dataclass(frozen=True, eq=False)
class MappedRows(Rows):
    """What a function makes of each example; one that can be pickled.

    Examples:
      >>> MappedRows([{"en": "a", "fr": "b"}], SelectFields("en"))[0]
      {'en': 'a'}
    """

    rows: Sequence[Example]
    function: Callable[[Example], Example]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """As Rows.read."""
        return [self.function(row) for row in read(self.rows, numbers_N)]


class SelectFields:  # noqa: N801  # a function that can be pickled
    """Takes these fields of an example, in their order."""

    def __init__(self, *fields: str):
        self._fields = fields

    def __call__(self, row: Example) -> Example:
        return {field: row[field] for field in self._fields}


class ConcatenatedRows(Rows):
    """The examples of several, those of one behind those of another.

    Examples:
      >>> list(ConcatenatedRows([{"en": "a"}], [{"en": "b"}, {"en": "c"}]))
      [{'en': 'a'}, {'en': 'b'}, {'en': 'c'}]
    """

    def __init__(self, *parts: Sequence[Example]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=int)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """As Rows.read."""
        part_N = np.searchsorted(self._ends, numbers_N, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        return _gather(self._parts, part_N, numbers_N - starts[part_N])


class InterleavedRows(Rows):
    """One example of each part, then the next of each, until all have ended.

    Examples:
      >>> list(InterleavedRows([{"en": "a"}, {"en": "b"}, {"en": "c"}], [{"en": "x"}]))
      [{'en': 'a'}, {'en': 'x'}, {'en': 'b'}, {'en': 'c'}]
    """

    def __init__(self, *parts: Sequence[Example]):
        self._parts = parts
        lengths = np.asarray([len(part) for part in parts])
        self._turns = np.unique([0, *lengths])[:-1]  # from which on other parts go on
        self._going = [np.flatnonzero(lengths > turn) for turn in self._turns]
        self._starts = np.asarray([np.minimum(lengths, turn).sum() for turn in self._turns], int)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """As Rows.read."""
        part_N, place_N = np.zeros(len(numbers_N), int), np.zeros(len(numbers_N), int)
        stretch_N = np.searchsorted(self._starts, numbers_N, side="right") - 1
        for stretch, (turn, going, start) in enumerate(zip(self._turns, self._going, self._starts, strict=True)):
            here = stretch_N == stretch
            place_N[here], which = np.divmod(numbers_N[here] - start, len(going))
            place_N[here] += turn
            part_N[here] = going[which]
        return _gather(self._parts, part_N, place_N)


def _gather(parts: Sequence[Sequence[Example]], part_N: np.ndarray, place_N: np.ndarray) -> list[Example]:
    """Example place_N[i] of parts[part_N[i]], for every i; each part is read once."""
    by_number: dict[int, Example] = {}
    for part in np.unique(part_N):
        here = np.flatnonzero(part_N == part)
        by_number |= zip(here.tolist(), read(parts[part], place_N[here]), strict=True)
    return [by_number[i] for i in range(len(part_N))]


def sample(rows: Sequence[Example], characters: int) -> Sequence[Example]:
    """Examples drawn evenly until their texts have so many characters, in the order of all; 0 for all.

    Which ones depends on their number and lengths alone. At least one; memory: a few bytes for each of all.

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
