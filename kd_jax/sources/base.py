"""The protocol of a source, its splits, and checks that sources share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from kd_jax.config import check_count
from kd_jax.errors import KdError
from kd_jax.types import Example

Splits = dict[str, Sequence[Example]]  # split -> examples: a list, or lazy rows (kd_jax.sources.rows)
SPLITS = ("train", "validation", "test")
UNLABELLED = "unlabelled"  # prompts without references; the teacher generates their targets


@runtime_checkable
class Source(Protocol):
    """Raw examples: a frozen dataclass of an experiment."""

    @property
    def name(self) -> str:
        """Name of the data in the report."""
        ...

    def check(self) -> None:
        """Raise KdError if a field has an invalid value; read no data."""
        ...

    def files(self) -> list[Path]:
        """Return the local files that decide the examples; `prepare` records their digests."""
        ...

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """Return the splits "train", "validation" and "test", and "unlabelled" if the source has such examples.

        Args:
          fields: the task's fields of every example.
          held_out_fields: further fields of validation and test examples, such as more references.
          prompt_fields: fields of an unlabelled example; empty if the task has no use for them.

        Raises:
          KdError: if a field, a file or a split is missing.
        """
        ...


def check_share(share: float) -> None:
    """Raise KdError if a source's `held_out` is not a share of the training examples."""
    if not 0 < share < 1:
        raise KdError(f"source.held_out: expected a share between 0 and 1, got {share}. Use 0.02, for example.")


def check_counts(**counts: int) -> None:
    """Raise KdError if one of a source's fields is out of its range."""
    for field, count in counts.items():
        check_count(f"source.{field}", count, 0, remedy="Use 0 for all.")


def check_unlabelled(prompt_fields: Sequence[str], **options: object) -> None:
    """Raise KdError if one of a source's fields asks for unlabelled examples and the task has no prompts."""
    for field, value in options.items():
        if value and not prompt_fields:
            raise KdError(
                f"source.{field}: expected no unlabelled examples for this task, got {value!r}. Remove the option."
            )
