"""Make and clean splits: hold out missing splits, drop references, remove leaks between splits."""

import contextlib
import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import regex

from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.sources.base import SPLITS, UNLABELLED, Splits
from kd_jax.sources.rows import ConcatenatedRows, MappedRows, SelectFields, subset, with_progress
from kd_jax.types import Example

if TYPE_CHECKING:
    from kd_jax.batches.workers import Workers

CHUNK = 16_384  # examples that a worker compares at a time
MANY_MARKS = regex.compile(r"(\p{M}{32})\p{M}+")  # more than any language has after a letter
INVISIBLE = regex.compile(r"[\p{Cc}\p{Cf}]+")


def hold_out(
    train: Sequence[Example],
    field: str,
    missing: Sequence[str],
    share: float,
    limit: int,
    keep: Callable[[Example], bool] | None = None,
) -> Splits:
    """Split the training examples: a share for each missing split, the rest for training.

    The normal form of an example's text decides its split (`normal_form`). It stays there if the data grow or are
    shuffled. The examples are read once, and only up to the limit.

    Args:
      train: training examples.
      field: whose text decides.
      missing: the splits to fill, such as ("validation", "test").
      share: of the training examples, for each of them.
      limit: maximum number of examples of a split; 0 for all.
      keep: whether to keep an example at all; None for all.
    """
    names = ("train", *missing)
    if not missing and not keep:
        return {"train": subset(train, np.arange(min(limit, len(train)))) if limit else train}
    split_N, counts = np.full(len(train), len(names), np.uint8), [0] * len(names)  # len(names): in no split
    for number, row in enumerate(with_progress(train, "read")):
        if keep is not None and not keep(row):
            continue
        text = normal_form(row[field]) if missing else ""
        split = next((i for i, name in enumerate(missing, 1) if _hash_to_unit(name + text) < share), 0)
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

    The text in `field` decides whether an example keeps its reference. The labelled examples of a smaller number are
    among those of a larger one, so runs with several numbers are comparable; 0 keeps all references.
    """
    train = splits["train"]
    if not labelled:
        return splits
    if labelled > len(train):
        raise KdError(
            f"source.labelled: expected at most the {len(train)} training examples, got {labelled}. Lower it."
        )
    values = (_hash_to_unit(row[field]) for row in with_progress(train, "choose references"))
    keep_N = np.zeros(len(train), bool)
    keep_N[np.argsort(np.fromiter(values, float, len(train)), kind="stable")[:labelled]] = True
    prompts = MappedRows(subset(train, np.flatnonzero(~keep_N)), SelectFields(*prompt_fields))
    unlabelled = ConcatenatedRows(prompts, splits.get(UNLABELLED, []))
    return splits | {"train": subset(train, np.flatnonzero(keep_N)), UNLABELLED: unlabelled}


def remove_leaks(splits: Splits, *fields: str, workers: "Workers | None" = None) -> tuple[Splits, dict[str, int]]:
    """Remove held-out examples whose text is also in the training data, and test examples that are also in validation.

    Texts are equal if their normal forms are (`normal_form`). Unlabelled examples count as training data. Hashes of 64
    bits are compared; those of the held-out examples are held in memory.

    Args:
      splits: "train", "validation", "test" and perhaps "unlabelled" -> examples.
      *fields: text fields. An example is removed if any of its texts equals any of these texts of the other split.
      workers: processes that read the training data; None for this process.

    Returns:
      The splits, and split -> number of removed examples.
    """
    order = [split for split in ("train", UNLABELLED, "validation", "test") if split in splits]
    held_out = {split: _hashes(splits[split], fields) for split in SPLITS[1:] if split in splits}
    hashes_H = np.unique(np.concatenate([np.zeros(0, np.uint64), *(x_NF.ravel() for x_NF in held_out.values())]))
    seen_H = np.zeros(len(hashes_H), bool)  # in an earlier split
    clean: Splits = {}
    search = splits, fields, hashes_H
    in_process = contextlib.nullcontext(lambda function, items: (function(search, item) for item in items))
    with workers.start(search) if workers else in_process as parallel_map:
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
    """Describe the examples that `remove_leaks` removed, of those of each split before; "" if there are none."""
    return "; ".join(
        f"{split}: {count:,} of {counts_before[split]:,} examples removed, their source is in the training data"
        for split, count in removed.items()
        if count
    )


def normal_form(text: str) -> str:
    r"""Return a text as it is compared with others: Unicode NFKC, case folded, every run of blanks one space.

    Blanks are white space, controls, and invisible marks such as U+200B: a model's tokenizer drops or replaces most of
    them.

    Examples:
      >>> {normal_form(text) for text in ("The café", "the  café ", "THE CAFÉ", "﻿The ｃａｆé")}
      {'the café'}
    """
    if len(text) > 1000:  # Python sorts the marks after a letter in quadratic time
        text = MANY_MARKS.sub(r"\1", text)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if not text.isprintable():
        text = INVISIBLE.sub(" ", text)
    return " ".join(text.split())


def _matching_hashes(search: tuple[Splits, Sequence[str], np.ndarray], chunk: tuple[str, range]) -> np.ndarray:
    """Return the indices of those hashes, uint64 [H], ascending, that texts of a chunk have."""
    (splits, fields, hashes_H), (split, numbers) = search, chunk
    hashes_N = _hashes(splits[split][numbers.start : numbers.stop], fields).ravel()
    indices_N = np.searchsorted(hashes_H, hashes_N)
    within = indices_N < len(hashes_H)
    indices_N, hashes_N = indices_N[within], hashes_N[within]
    return np.unique(indices_N[hashes_H[indices_N] == hashes_N])


def _hashes(rows: Sequence[Example], fields: Sequence[str]) -> np.ndarray:
    """Return the hashes of texts' normal forms, uint64 [rows, fields that the rows have]."""
    texts = (normal_form(row[field]).encode() for row in rows for field in fields if field in row)
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64).reshape(len(rows), -1) if digests else np.zeros((0, 1), np.uint64)


def _hash_to_unit(text: str) -> float:
    """Return a number in [0, 1) that depends on the text only."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56
