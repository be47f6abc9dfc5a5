"""Several language pairs, each in both directions."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.sources.splits import (
    UNLABELLED,
    Example,
    Splits,
    describe_leaks,
    remove_leaks,
)
from kd_jax.sources.rows import InterleavedRows, MappedRows

DIRECTION = ("source", "target", "direction")  # the fields of an example


@dataclasses.dataclass(frozen=True)
class Directions:
    """Several language pairs, each in both directions, for one model that is told which: multi-way translation.

    Its examples have the fields `source`, `target` and `direction`. A held-out pair of texts is left out where
    either of them, case apart, is trained on in whatever direction and pair.

    Attributes:
      pairs: two languages -> the source whose examples have them as fields, such as {"en-fr": Debian("en-fr")}.

    Examples:
      >>> splits = Directions({"en-fr": Toy(examples=8), "en-de": Toy(examples=8, seed=1)}).splits(("source", "target"))
      >>> [row["direction"] for row in splits["train"][:5]]
      ['en-fr', 'fr-en', 'en-de', 'de-en', 'en-fr']
    """

    pairs: Mapping[str, Any]

    @property
    def name(self) -> str:
        return ", ".join(f"{pair}: {source.name}" for pair, source in self.pairs.items())

    def files(self) -> list[Path]:
        """Local files that decide the examples, to be digested."""
        return [path for source in self.pairs.values() for path in source.files()]

    def check(self) -> None:
        """Raises KdError for a field that cannot be; reads nothing."""
        if not self.pairs:
            raise KdError(
                "source.pairs: none; wanted two languages and their source, such as {'en-fr': Debian('en-fr')}"
            )
        for pair, source in self.pairs.items():
            if len(set(pair.split("-")) - {""}) != 2 or pair.count("-") != 1:
                raise KdError(f"source.pairs: {pair!r}; wanted two languages, such as 'en-fr'")
            try:
                source.check()
            except KdError as error:
                raise KdError(f"source.pairs.{pair}: {error}") from error

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """The splits of all parts, an example of each in turn; unlabelled text is in a pair's first language."""
        if unknown := set((*fields, *held_out_fields)) - set(DIRECTION):
            raise KdError(
                f"source Directions: the task reads {', '.join(sorted(unknown))}; wanted {', '.join(DIRECTION)}"
            )
        streams: dict[str, list[Sequence[Example]]] = {}
        for pair, source in self.pairs.items():
            languages = tuple(pair.split("-"))
            for split, rows in source.splits(languages, (), languages[:1] if prompt_fields else ()).items():
                ways = (languages,) if split == UNLABELLED else (languages, languages[::-1])
                streams.setdefault(split, []).extend(MappedRows(rows, functools.partial(_directed, *way)) for way in ways)
        in_turn = {split: InterleavedRows(*parts) for split, parts in streams.items()}
        splits, leaked = remove_leaks(in_turn, "source", "target")
        if sentence := describe_leaks({split: len(rows) for split, rows in in_turn.items()}, leaked):
            progress.log(f"data: {sentence}, in whatever direction")
        return splits


def _directed(source: str, target: str, row: Example) -> Example:
    """An example of two languages as one of a direction; without its target where it has none."""
    texts = {"source": row[source], "target": row[target]} if target in row else {"source": row[source]}
    return texts | {"direction": f"{source}-{target}"}
