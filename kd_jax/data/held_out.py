"""Held-out examples: a share of the training text where a split is missing, and what is said of those left out."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

Example = dict[str, str]
Splits = dict[str, list[Example]]
SPLITS = ("train", "validation", "test")


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


def without_leaks(splits: Splits, source: str) -> tuple[Splits, dict[str, int]]:
    """Drops held-out examples whose source text, case apart, is trained on (or, for test, validated on).

    Args:
      splits: "train", "validation" and "test" -> examples.
      source: the field that the model reads.

    Returns:
      (splits, how many were dropped of each).

    Examples:
      >>> splits = {"train": [{"en": "Yes"}], "validation": [{"en": "yes"}, {"en": "no"}], "test": [{"en": "so"}]}
      >>> without_leaks(splits, "en")[0]["validation"]
      [{'en': 'no'}]
      >>> without_leaks(splits, "en")[1]
      {'train': 0, 'validation': 1, 'test': 0}
    """
    earlier: set[str] = set()
    clean: Splits = {}
    for split in SPLITS:
        clean[split] = [row for row in splits[split] if row[source].casefold() not in earlier]
        earlier |= {row[source].casefold() for row in splits[split]}
    return clean, {split: len(splits[split]) - len(clean[split]) for split in SPLITS}


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


def _chance(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56
