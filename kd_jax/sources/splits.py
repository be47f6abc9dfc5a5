"""Make and clean splits: hold out missing splits, drop references, remove leaks between splits."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.sources.base import SPLITS, UNLABELLED, Splits
from kd_jax.sources.rows import ConcatenatedRows, MappedRows, SelectFields, subset, with_progress
from kd_jax.types import Example

if TYPE_CHECKING:
    from kd_jax.batches.workers import ParallelMap, Workers

CHUNK = 16_384  # examples that a worker compares at a time


def hold_out(
    train: Sequence[Example],
    field: str,
    missing: Sequence[str],
    share: float,
    limit: int,
    keep: Callable[[Example], bool] | None = None,
) -> Splits:
    """Split the training examples: a share for each missing split, the rest for training.

    An example's text decides its split. It stays there if the data grow or are shuffled.

    Args:
      train: training examples; read once, and only up to the limit.
      field: whose text decides.
      missing: the splits to fill, such as ("validation", "test").
      share: of the training examples, for each of them.
      limit: maximum number of examples of a split; 0 for all.
      keep: whether to keep an example at all; None for all.

    Returns:
      "train" and the missing splits -> examples, in their order.

    Examples:
      >>> rows = [{"text": f"sentence {i}"} for i in range(1000)]
      >>> splits = hold_out(rows, "text", ("test",), share=0.1, limit=0)
      >>> {split: len(examples) for split, examples in splits.items()}
      {'train': 884, 'test': 116}
    """
    names = ("train", *missing)
    if not missing and keep is None:
        return {"train": subset(train, np.arange(min(limit, len(train)))) if limit else train}
    split_N, counts = np.full(len(train), len(names), np.uint8), [0] * len(names)  # len(names): in no split
    for number, row in enumerate(with_progress(train, "read")):
        if keep is not None and not keep(row):
            continue
        split = next((i for i, name in enumerate(missing, 1) if _hash_to_unit(name + row[field]) < share), 0)
        if not limit or counts[split] < limit:
            split_N[number] = split
            counts[split] += 1
        if limit and all(count == limit for count in counts):
            break
    return {name: subset(train, np.flatnonzero(split_N == i)) for i, name in enumerate(names)}


def take(rows: Sequence[Example], limit: int, keep: Callable[[Example], bool] | None = None) -> Sequence[Example]:
    """Return the first `limit` examples (0 for all) that `keep` accepts."""
    return hold_out(rows, "", (), 0.0, limit, keep)["train"]


def drop_references(splits: Splits, field: str, prompt_fields: Sequence[str], labelled: int) -> Splits:
    """Move all but `labelled` training examples to "unlabelled", without their references.

    An example's text decides whether it keeps its reference. The labelled examples of a smaller number are among those
    of a larger one, so runs with several numbers are comparable.

    Args:
      splits: "train" and others -> examples.
      field: whose text decides.
      prompt_fields: fields of an unlabelled example.
      labelled: number of training examples that keep their reference; 0 for all.

    Raises:
      KdError: if there are fewer training examples.

    Examples:
      >>> rows = [{"en": en, "fr": fr} for en, fr in (("one", "un"), ("two", "deux"), ("three", "trois"))]
      >>> splits = drop_references({"train": rows}, "en", ("en",), labelled=1)
      >>> {split: list(rows) for split, rows in splits.items()}
      {'train': [{'en': 'one', 'fr': 'un'}], 'unlabelled': [{'en': 'two'}, {'en': 'three'}]}
    """
    train = splits["train"]
    if not labelled:
        return splits
    if labelled > len(train):
        raise KdError(
            f"source.labelled: expected at most the {len(train)} training examples, got {labelled}. Use 0 for all."
        )
    values = (_hash_to_unit(row[field]) for row in with_progress(train, "choose references"))
    keep_N = np.zeros(len(train), bool)
    keep_N[np.argsort(np.fromiter(values, float, len(train)), kind="stable")[:labelled]] = True
    prompts = MappedRows(subset(train, np.flatnonzero(~keep_N)), SelectFields(*prompt_fields))
    unlabelled = ConcatenatedRows(prompts, splits.get(UNLABELLED, []))
    return splits | {"train": subset(train, np.flatnonzero(keep_N)), UNLABELLED: unlabelled}


def remove_leaks(splits: Splits, *fields: str, workers: "Workers | None" = None) -> tuple[Splits, dict[str, int]]:
    """Remove held-out examples whose text is also in the training data, or test texts that are in validation.

    Case is ignored. Unlabelled examples are training data. The comparison uses 64-bit hashes, and keeps those of the
    held-out examples in memory.

    Args:
      splits: "train", "validation", "test" and perhaps "unlabelled" -> examples.
      *fields: whose texts are compared, each with the texts of all of them; usually the field that the model reads.
      workers: processes that read the training data; None for this process.

    Returns:
      (splits, split -> number of removed examples).

    Examples:
      >>> splits = {"train": [{"en": "Yes"}], "validation": [{"en": "yes"}, {"en": "no"}], "test": [{"en": "so"}]}
      >>> list(remove_leaks(splits, "en")[0]["validation"])
      [{'en': 'no'}]
      >>> remove_leaks(splits, "en")[1]
      {'train': 0, 'validation': 1, 'test': 0}
    """
    order = [split for split in ("train", UNLABELLED, "validation", "test") if split in splits]
    held_out = {split: _hashes(splits[split], fields) for split in SPLITS[1:] if split in splits}
    hashes_H = np.unique(np.concatenate([np.zeros(0, np.uint64), *(x_NF.ravel() for x_NF in held_out.values())]))
    seen_H = np.zeros(len(hashes_H), bool)  # in an earlier split
    clean: Splits = {}
    with (workers.start if workers else _in_process)(_LeakSearch(splits, fields, hashes_H)) as parallel_map:
        for split in order:
            clean[split], rows = splits[split], splits[split]
            if split in held_out:
                indices_NF = np.searchsorted(hashes_H, held_out[split])
                clean[split] = subset(rows, np.flatnonzero(~seen_H[indices_NF].any(-1)))
                seen_H[indices_NF] = True
                continue
            chunks = [(split, range(start, min(start + CHUNK, len(rows)))) for start in range(0, len(rows), CHUNK)]
            with progress.bar(f"compare {split}", len(rows)) as bar:
                for (_, numbers), indices in zip(chunks, parallel_map(_matching_hashes, chunks), strict=True):
                    seen_H[indices] = True
                    bar.advance(len(numbers))
    return clean, {split: len(splits[split]) - len(clean[split]) for split in order}


def describe_leaks(counts_before: Mapping[str, int], removed: Mapping[str, int]) -> str:
    """Describe the examples that `remove_leaks` removed; "" if there are none.

    Args:
      counts_before: split -> examples before.
      removed: split -> removed examples.

    Examples:
      >>> describe_leaks({"train": 90_000, "validation": 800, "test": 1200}, {"train": 0, "validation": 0, "test": 41})
      'test: 41 of 1,200 examples removed, their source is in the training data'
    """
    return "; ".join(
        f"{split}: {count:,} of {counts_before[split]:,} examples removed, their source is in the training data"
        for split, count in removed.items()
        if count
    )


class _LeakSearch(NamedTuple):
    """The hashes to look for, uint64 [H], ascending, and the splits to read."""

    splits: Splits
    fields: Sequence[str]
    hashes_H: np.ndarray


def _matching_hashes(search: _LeakSearch, chunk: tuple[str, range]) -> np.ndarray:
    """Return the indices of those hashes that texts of a chunk (split, example numbers) have."""
    split, numbers = chunk
    hashes_N = _hashes(search.splits[split][numbers.start : numbers.stop], search.fields).ravel()
    hashes_H = search.hashes_H
    indices_N = np.searchsorted(hashes_H, hashes_N)
    within = indices_N < len(hashes_H)
    indices_N, hashes_N = indices_N[within], hashes_N[within]
    return np.unique(indices_N[hashes_H[indices_N] == hashes_N])


@contextlib.contextmanager
def _in_process(shared: Any) -> "Iterator[ParallelMap]":
    """Give the map of a single worker: this process."""

    def serial_map(function: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return (function(shared, item) for item in items)

    yield serial_map


def _hashes(rows: Sequence[Example], fields: Sequence[str]) -> np.ndarray:
    """Return the hashes of texts without case, uint64 [rows, fields that the rows have]."""
    texts = (row[field].casefold().encode() for row in rows for field in fields if field in row)
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64).reshape(len(rows), -1) if digests else np.zeros((0, 1), np.uint64)


def _hash_to_unit(text: str) -> float:
    """Return a number in [0, 1) that depends on the text only."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56
