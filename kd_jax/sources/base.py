"""The protocol of a source: raw examples, by split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from kd_jax.sources.splits import Splits


@runtime_checkable
class Source(Protocol):
    """Raw examples. A source checks its fields, names its files, and gives its splits.

    Attributes:
      name: how the report calls it.
    """

    @property
    def name(self) -> str: ...

    def check(self) -> None:
        """Raise KdError if a field has an invalid value. Read nothing."""
        ...

    def files(self) -> list[Path]:
        """Return the local files that decide the examples; `prepare` keeps their digests."""
        ...

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """Return the splits "train", "validation" and "test", and "unlabelled" if `prompt_fields` are given.

        Args:
          fields: the task's fields of every example.
          held_out_fields: further fields of validation and test examples, such as more references.
          prompt_fields: the fields of an example without a reference.

        Returns:
          Split name -> examples: a list, or lazy rows (kd_jax.sources.rows).

        Raises:
          KdError: if a field, a file or a split is missing.
        """
        ...
