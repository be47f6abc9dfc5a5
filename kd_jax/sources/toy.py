"""Made-up text for tests and a first look."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kd_jax.errors import KdError
from kd_jax.sources import toy_texts
from kd_jax.sources.splits import (
    Splits,
    check_counts,
    drop_references,
    refuse_unlabelled,
)

TOYS = {"pairs": toy_texts.pairs, "summaries": toy_texts.summaries, "documents": toy_texts.documents}


@dataclasses.dataclass(frozen=True)
class Toy:
    """Made-up text for tests and a first look (kd_jax.sources.toy_texts): needs no network and means nothing.

    Attributes:
      examples: training examples; an eighth as many for validation and for test.
      seed: decides them.
      kind: "pairs" (of languages), "summaries" (a list and its short form), or "documents" (one field).
      labelled: training examples that keep their reference, the others becoming unlabelled; 0 for all.

    Examples:
      >>> splits = Toy(examples=80).splits(("en", "fr"))
      >>> {split: len(rows) for split, rows in splits.items()}
      {'test': 10, 'validation': 10, 'train': 80}
      >>> splits["train"][0]
      {'en': 'two black stones and seven white clouds', 'fr': 'owt senots kcalb et neves sduolc etihw'}
    """

    examples: int = 400
    seed: int = 0
    kind: Literal["pairs", "summaries", "documents"] = "pairs"
    labelled: int = 0

    name = "toy"

    def files(self) -> list[Path]:
        """Local files that decide the examples, to be digested."""
        return []

    def check(self) -> None:
        """Raises KdError for a field that cannot be: there are 78,680 sentences, and each is used once."""
        if self.kind not in TOYS:
            raise KdError(f"source.kind: {self.kind!r}; wanted one of {', '.join(TOYS)}")
        if not 8 <= self.examples <= 50_000:
            raise KdError(f"source.examples: {self.examples}; wanted 8 to 50,000")
        check_counts({"seed": self.seed, "labelled": self.labelled})

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """Distinct texts, cut into the splits; the fields are called as the task calls them."""
        refuse_unlabelled({"labelled": self.labelled}, prompt_fields)
        held = self.examples // 8
        texts = TOYS[self.kind](self.examples + 2 * held, self.seed)
        if len(fields) != len(texts[0]) or held_out_fields:
            raise KdError(
                f"source.kind: {self.kind!r}, texts in an example: {len(texts[0])}; the task reads "
                f"{', '.join((*fields, *held_out_fields))}: take another kind or source"
            )
        rows = [dict(zip(fields, row, strict=True)) for row in texts]
        splits = {"test": rows[:held], "validation": rows[held : 2 * held], "train": rows[2 * held :]}
        return drop_references(splits, fields[0], prompt_fields, self.labelled)
