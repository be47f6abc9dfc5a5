"""Splits: held-out examples where a split is missing, text without references, and leaks between what is left."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.batches.workers import IN_PROCESS, Workers
from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.sources.rows import Example, ConcatenatedRows, MappedRows, subset, SelectFields, with_progress

Splits = dict[str, Sequence[Example]]
PART = 16_384  # examples that a process compares at a time
SPLITS = ("train", "validation", "test")
UNLABELLED = "unlabelled"  # prompts alone, for which the teacher writes the targets


def hold_out(
    train: Sequence[Example],
    field: str,
    missing: Sequence[str],
    share: float,
    limit: int,
    wanted: Callable[[Example], bool] | None = None,
) -> Splits:
    """The training examples, and of them a share for each split that is missing.

    Where an example goes depends on its text alone, so that it stays there as the file grows or is shuffled.

    Args:
      train: read once, and not beyond the examples that are kept.
      field: whose text decides.
      missing: the splits to fill, such as ("validation", "test").
      share: of the training examples, for each of them.
      limit: examples kept of a split; 0 for all.
      wanted: whether an example is kept at all; None for all.

    Returns:
      "train" and the missing splits -> examples, in their order.

    Examples:
      >>> rows = [{"text": f"sentence {i}"} for i in range(1000)]
      >>> splits = hold_out(rows, "text", ("test",), share=0.1, limit=0)
      >>> {split: len(examples) for split, examples in splits.items()}
      {'train': 884, 'test': 116}
    """
    names = ("train", *missing)
    if not missing and wanted is None:
        return {"train": subset(train, np.arange(min(limit, len(train)))) if limit else train}
    place_N, kept = np.full(len(train), len(names), np.uint8), [0] * len(names)
    for number, row in enumerate(with_progress(train, "read")):
        if wanted is not None and not wanted(row):
            continue
        place = next((i for i, name in enumerate(missing, 1) if _chance(name + row[field]) < share), 0)
        if not limit or kept[place] < limit:
            place_N[number] = place
            kept[place] += 1
        if limit and all(count == limit for count in kept):
            break
    return {name: subset(train, np.flatnonzero(place_N == place)) for place, name in enumerate(names)}


def drop_references(splits: Splits, field: str, prompt_fields: Sequence[str], labelled: int) -> Splits:
    """Takes the references from all but `labelled` training examples and moves these to "unlabelled".

    Which ones keep theirs depends on their text alone, and the examples of a smaller number are among those of a
    larger one, so that runs of several numbers compare.

    Args:
      splits: "train" and others -> examples.
      field: whose text decides.
      prompt_fields: what an unlabelled example keeps.
      labelled: training examples that keep their reference; 0 for all.

    Raises:
      KdError: if there are fewer.

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
        raise KdError(f"source.labelled: {labelled}, of {len(train)} training examples; wanted fewer, or 0 for all")
    chances = (_chance(row[field]) for row in with_progress(train, "choose references"))
    keeps_N = np.zeros(len(train), bool)
    keeps_N[np.argsort(np.fromiter(chances, float, len(train)), kind="stable")[:labelled]] = True
    others = MappedRows(subset(train, np.flatnonzero(~keeps_N)), SelectFields(*prompt_fields))
    given = splits[UNLABELLED] if UNLABELLED in splits else []
    return splits | {"train": subset(train, np.flatnonzero(keeps_N)), UNLABELLED: ConcatenatedRows(others, given)}


def remove_leaks(splits: Splits, *fields: str, workers: Workers = IN_PROCESS) -> tuple[Splits, dict[str, int]]:
    """Drops held-out examples of which a text, case apart, is trained on (or, for test, validated on).

    Unlabelled examples are trained on too. Texts are compared by hashes of 64 bits, of which those of the held-out
    examples alone are kept.

    Args:
      splits: "train", "validation", "test" and perhaps "unlabelled" -> examples.
      fields: whose texts are compared, with the texts of all of them; as a rule the one that the model reads.
      workers: that read them.

    Returns:
      (splits, how many were dropped of each).

    Examples:
      >>> splits = {"train": [{"en": "Yes"}], "validation": [{"en": "yes"}, {"en": "no"}], "test": [{"en": "so"}]}
      >>> list(remove_leaks(splits, "en")[0]["validation"])
      [{'en': 'no'}]
      >>> remove_leaks(splits, "en")[1]
      {'train': 0, 'validation': 1, 'test': 0}
    """
    order = [split for split in ("train", UNLABELLED, "validation", "test") if split in splits]
    held_out = {split: _hashes(splits[split], fields) for split in SPLITS[1:] if split in splits}
    known_H = np.unique(np.concatenate([np.zeros(0, np.uint64), *(x_NF.ravel() for x_NF in held_out.values())]))
    met_H = np.zeros(len(known_H), bool)  # in what came before
    clean: Splits = {}
    with workers.sharing(_Compared(splits, fields, known_H)) as each:
        for split in order:
            clean[split], rows = splits[split], splits[split]
            if split in held_out:
                places_NF = np.searchsorted(known_H, held_out[split])
                clean[split] = subset(rows, np.flatnonzero(~met_H[places_NF].any(-1)))
                met_H[places_NF] = True
                continue
            parts = [(split, range(start, min(start + PART, len(rows)))) for start in range(0, len(rows), PART)]
            with progress.bar(f"compare {split}", len(rows)) as bar:
                for (_, part), places in zip(parts, each(_met, parts), strict=True):
                    met_H[places] = True
                    bar.advance(len(part))
    return clean, {split: len(splits[split]) - len(clean[split]) for split in order}


class _Compared(NamedTuple):
    """What is looked for, and where: hashes of texts, uint64 [H], ascending."""

    splits: Splits
    fields: Sequence[str]
    known_H: np.ndarray


def _met(compared: _Compared, part: tuple[str, range]) -> np.ndarray:
    """Places of those hashes that some texts of a split have."""
    split, numbers = part
    hashes_N = _hashes(compared.splits[split][numbers.start : numbers.stop], compared.fields).ravel()
    known_H = compared.known_H
    places_N = np.searchsorted(known_H, hashes_N)
    within = places_N < len(known_H)
    places_N, hashes_N = places_N[within], hashes_N[within]
    return np.unique(places_N[known_H[places_N] == hashes_N])


def describe_leaks(counts_before: Mapping[str, int], dropped: Mapping[str, int]) -> str:
    """What `remove_leaks` left out, in words; "" where nothing was.

    Args:
      counts_before: split -> examples before.
      dropped: split -> examples left out.

    Examples:
      >>> describe_leaks({"train": 90_000, "validation": 800, "test": 1200}, {"train": 0, "validation": 0, "test": 41})
      'test: 41 of 1,200 examples left out, their source is trained on'
    """
    return "; ".join(
        f"{split}: {count:,} of {counts_before[split]:,} examples left out, their source is trained on"
        for split, count in dropped.items()
        if count
    )


def check_share(share: float) -> None:
    """Raises KdError for a share of the training examples that cannot be held out."""
    if not 0 < share < 1:
        raise KdError(f"source.held_out: {share}; wanted a share of the training examples, between 0 and 1")


def check_counts(counts: Mapping[str, int]) -> None:
    """Raises KdError for a field of a source, name -> value, that is negative."""
    for field, value in counts.items():
        if value < 0:
            raise KdError(f"source.{field}: {value}; wanted 0 or more")


def refuse_unlabelled(asked: Mapping[str, Any], prompt_fields: Sequence[str]) -> None:
    """Raises KdError where fields of a source, name -> value, ask for prompts that the task has no use for."""
    for field, value in asked.items():
        if value and not prompt_fields:
            raise KdError(
                f"source.{field}: {value!r}; this task's examples are nothing without a reference: leave it out"
            )


def first(rows: Sequence[Example], limit: int, wanted: Callable[[Example], bool] | None = None) -> Sequence[Example]:
    """All rows, or the first `limit` (0 for all), of those that are wanted."""
    return hold_out(rows, "", (), 0.0, limit, wanted)["train"]


def _hashes(rows: Sequence[Example], fields: Sequence[str]) -> np.ndarray:
    """uint64 [rows, fields], of the texts of those fields that the rows have, case apart."""
    texts = (row[field].casefold().encode() for row in rows for field in fields if field in row)
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64).reshape(len(rows), -1) if digests else np.zeros((0, 1), np.uint64)


def _chance(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56
