"""Several language pairs, each in both directions, as a source."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.sources.base import UNLABELLED, Source, Splits
from kd_jax.sources.rows import MappedRows, interleave
from kd_jax.sources.splits import describe_leaks, remove_leaks
from kd_jax.types import Example

FIELDS = ("source", "target", "direction")


@dataclasses.dataclass(frozen=True)
class Directions:
    """Several language pairs, each in both directions, for multi-way translation with one model.

    The examples have the fields `source`, `target` and `direction`. A held-out pair of texts is removed if one of them
    is in the training data of any direction or pair; case is ignored.

    Attributes:
      pairs: two languages -> the source whose examples have them as fields, such as {"en-fr": Debian("en-fr")}.

    Examples:
      >>> from kd_jax.sources.toy import Toy
      >>> splits = Directions({"en-fr": Toy(examples=8), "en-de": Toy(examples=8, seed=1)}).splits(("source", "target"))
      >>> [row["direction"] for row in splits["train"][:5]]
      ['en-fr', 'fr-en', 'en-de', 'de-en', 'en-fr']
    """

    pairs: Mapping[str, Source]

    @property
    def name(self) -> str:
        """The pairs and the names of their sources."""
        return ", ".join(f"{pair}: {source.name}" for pair, source in self.pairs.items())

    def files(self) -> list[Path]:
        """Return the files of all sources."""
        return [path for source in self.pairs.values() for path in source.files()]

    def check(self) -> None:
        """Raise KdError if a field has an invalid value, here or in a pair's source."""
        if not self.pairs:
            raise KdError(
                "source.pairs: expected languages and their source, got none. Use {'en-fr': Debian('en-fr')}."
            )
        for pair, source in self.pairs.items():
            if len(set(pair.split("-")) - {""}) != 2 or pair.count("-") != 1:
                raise KdError(f"source.pairs: expected two languages, got {pair!r}. Write 'en-fr', for example.")
            try:
                source.check()
            except KdError as error:
                raise KdError(f"source.pairs.{pair}: {error}") from error

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """Return the splits of all directions, interleaved; unlabelled text is in a pair's first language."""
        if unknown := set((*fields, *held_out_fields)) - set(FIELDS):
            names = ", ".join(sorted(unknown))
            raise KdError(
                f"source: expected a task with the fields {', '.join(FIELDS)} of Directions, got {names}. Rename them."
            )
        parts: dict[str, list[Sequence[Example]]] = {}
        for pair, source in self.pairs.items():
            first, second = pair.split("-")
            for split, rows in source.splits((first, second), (), (first,) if prompt_fields else ()).items():
                directions = [(first, second)] if split == UNLABELLED else [(first, second), (second, first)]
                parts.setdefault(split, []).extend(
                    MappedRows(rows, functools.partial(_to_direction, *direction)) for direction in directions
                )
        interleaved: Splits = {split: interleave(*rows) for split, rows in parts.items()}
        splits, leaks = remove_leaks(interleaved, "source", "target")
        if description := describe_leaks({split: len(rows) for split, rows in interleaved.items()}, leaks):
            progress.log(f"data: {description}, in any direction")
        return splits


def _to_direction(source: str, target: str, row: Example) -> Example:
    """Return an example of two languages as one of a direction, without a target if it has none."""
    texts = {"source": row[source], "target": row[target]} if target in row else {"source": row[source]}
    return texts | {"direction": f"{source}-{target}"}
