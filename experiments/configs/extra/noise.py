"""A source in which a share of the training examples have wrong references, as in a corpus from the web."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_jax.sources import Source
from kd_jax.sources.base import Splits


@dataclasses.dataclass(frozen=True)
class WrongReferences:
    """A source in which some training examples have the reference of another example.

    Attributes:
      source: the original source.
      share: share of training examples with a wrong reference.
      seed: seed of the choice of examples.
    """

    source: Source
    share: float = 0.3
    seed: int = 0

    @property
    def name(self) -> str:
        """Return the name of the original source and the share."""
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
        """Return the splits of the original source, with the references of the chosen examples exchanged."""
        splits = self.source.splits(fields, held_out_fields, prompt_fields)
        train, prompt = splits["train"], set(prompt_fields)
        rng = np.random.default_rng(self.seed)
        chosen = rng.permutation(len(train))[: int(self.share * len(train))]
        wrong = list(train)
        for i, j in zip(chosen, np.roll(chosen, 1), strict=True):
            wrong[i] = {field: train[i if field in prompt else j][field] for field in train[i]}
        return splits | {"train": wrong}
