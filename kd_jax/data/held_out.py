"""Splits: held-out examples where a split is missing, text without references, and leaks between what is left."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kd_jax.errors import KdError

Example = dict[str, str]
Splits = dict[str, list[Example]]
SPLITS = ("train", "validation", "test")
UNLABELLED = "unlabelled"  # prompts alone, for which the teacher writes the targets


def hold_out(
    train: Iterable[Example], field: str, missing: Sequence[str], share: float, limit: int
) -> dict[str, list[Example]]:
    """The training examples, and of them a share for each split that is missing.

    Where an example goes depends on its text alone, so that it stays there as the file grows or is shuffled.

    Args:
      field: whose text decides.
      missing: the splits to fill, such as ("validation", "test").
      share: of the training examples, for each of them.
      limit: examples kept of a split; 0 for all.

    Returns:
      "train" and the missing splits -> examples, in their order.

    Examples:
      >>> rows = [{"text": f"sentence {i}"} for i in range(1000)]
      >>> splits = hold_out(rows, "text", ("test",), share=0.1, limit=0)
      >>> {split: len(examples) for split, examples in splits.items()}
      {'train': 884, 'test': 116}
    """
    splits: dict[str, list[Example]] = {split: [] for split in ("train", *missing)}
    for row in train:
        split = next((split for split in missing if _chance(split + row[field]) < share), "train")
        if not limit or len(splits[split]) < limit:
            splits[split].append(row)
        elif all(len(rows) == limit for rows in splits.values()):
            break
    return splits


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
      >>> drop_references({"train": rows}, "en", ("en",), labelled=1)
      {'train': [{'en': 'one', 'fr': 'un'}], 'unlabelled': [{'en': 'two'}, {'en': 'three'}]}
    """
    train = splits["train"]
    if not labelled:
        return splits
    if labelled > len(train):
        raise KdError(f"source.labelled: {labelled}, of {len(train)} training examples; wanted fewer, or 0 for all")
    chosen = set(sorted(range(len(train)), key=lambda i: _chance(train[i][field]))[:labelled])
    others = [{name: row[name] for name in prompt_fields} for i, row in enumerate(train) if i not in chosen]
    given = splits[UNLABELLED] if UNLABELLED in splits else []
    return splits | {"train": [train[i] for i in sorted(chosen)], UNLABELLED: others + given}


def without_leaks(splits: Splits, *fields: str) -> tuple[Splits, dict[str, int]]:
    """Drops held-out examples of which a text, case apart, is trained on (or, for test, validated on).

    Unlabelled examples are trained on too.

    Args:
      splits: "train", "validation", "test" and perhaps "unlabelled" -> examples.
      fields: whose texts are compared, with the texts of all of them; as a rule the one that the model reads.

    Returns:
      (splits, how many were dropped of each).

    Examples:
      >>> splits = {"train": [{"en": "Yes"}], "validation": [{"en": "yes"}, {"en": "no"}], "test": [{"en": "so"}]}
      >>> without_leaks(splits, "en")[0]["validation"]
      [{'en': 'no'}]
      >>> without_leaks(splits, "en")[1]
      {'train': 0, 'validation': 1, 'test': 0}
    """
    order = [split for split in ("train", UNLABELLED, "validation", "test") if split in splits]
    earlier: set[str] = set()
    clean: Splits = {}
    for split in order:
        texts = [{row[field].casefold() for field in fields if field in row} for row in splits[split]]
        trained_on = split in ("train", UNLABELLED)
        clean[split] = [
            row for row, own in zip(splits[split], texts, strict=True) if trained_on or own.isdisjoint(earlier)
        ]
        earlier = earlier.union(*texts)
    return clean, {split: len(splits[split]) - len(clean[split]) for split in order}


def leak_sentence(counts_before: Mapping[str, int], dropped: Mapping[str, int]) -> str:
    """What `without_leaks` left out, in words; "" where nothing was.

    Args:
      counts_before: split -> examples before.
      dropped: split -> examples left out.

    Examples:
      >>> leak_sentence({"train": 90_000, "validation": 800, "test": 1200}, {"train": 0, "validation": 0, "test": 41})
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


def first(rows: Iterable[Example], limit: int) -> list[Example]:
    """All rows, or the first `limit`; 0 for all."""
    return list(itertools.islice(rows, limit or None))


def _chance(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56
