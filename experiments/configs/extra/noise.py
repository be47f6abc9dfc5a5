"""A source with wrong references for a share of its training examples, as in a corpus from the web."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_jax.sources import Source
from kd_jax.sources.base import Splits


@dataclasses.dataclass(frozen=True)
class WrongReferences:
    """A source whose training examples have, in part, the reference of another example.

    Attributes:
      source: the original source.
      share: share of training examples with a wrong reference.
      seed: decides which examples.
    """

    source: Source
    share: float = 0.3
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.source.name}, {self.share:.0%} of the training references wrong"

    def files(self) -> list[Path]:
        """Return the files of the original source."""
        return self.source.files()

    def check(self) -> None:
        """Check the original source."""
        self.source.check()

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """Return the splits of the original source, with the references of the drawn examples rotated."""
        splits = self.source.splits(fields, held_out_fields, prompt_fields)
        train, prompt = splits["train"], set(prompt_fields)
        rng = np.random.default_rng(self.seed)
        drawn = rng.permutation(len(train))[: int(self.share * len(train))]
        wrong = list(train)
        for i, j in zip(drawn, np.roll(drawn, 1), strict=True):
            wrong[i] = {field: train[i if field in prompt else j][field] for field in train[i]}
        return splits | {"train": wrong}
