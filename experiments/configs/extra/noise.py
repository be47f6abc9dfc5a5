"""A source whose training references are wrong in part, as in a corpus from the web: what a config may import."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class WrongReferences:
    """Another source, but a share of its training examples have the reference of another one.

    Attributes:
      source: the other one.
      share: of the training examples.
      seed: decides which.
    """

    source: Any
    share: float = 0.3
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.source.name}, {self.share:.0%} of the training references wrong"

    def files(self) -> list[Path]:
        """The other source's."""
        return self.source.files()

    def check(self) -> None:
        """As the other source's."""
        self.source.check()

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> dict[str, list[dict[str, str]]]:
        """As the other source's, with references moved around in a circle of the chosen ones."""
        splits = self.source.splits(fields, held_out_fields, prompt_fields)
        train, given = splits["train"], set(prompt_fields)
        rng = np.random.default_rng(self.seed)
        chosen = rng.permutation(len(train))[: int(self.share * len(train))]
        wrong = list(train)
        for i, j in zip(chosen, np.roll(chosen, 1), strict=True):
            wrong[i] = {field: train[i if field in given else j][field] for field in train[i]}
        return splits | {"train": wrong}
