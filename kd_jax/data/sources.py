"""Where raw examples come from: a source checks itself, names its files, and gives its splits.

`splits(fields, held_out_fields, prompt_fields)` of every source takes a task's fields: those of every example,
further ones of validation and test examples (such as other references), and those of a prompt without a reference.
It returns "train", "validation" and "test", and "unlabelled" where that was asked for: prompts alone, for which the
teacher writes the targets. Each is a list of examples, or Rows, which stay where they are (kd_jax.data.rows). It raises
KdError where a field, a file or a split is lacking.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kd_jax.artifacts import runlog
from kd_jax.data import toy
from kd_jax.data.datasets import Debian, Tfds
from kd_jax.data.held_out import (
    SPLITS,
    UNLABELLED,
    Example,
    Splits,
    check_counts,
    check_share,
    drop_references,
    first,
    hold_out,
    leak_sentence,
    refuse_unlabelled,
    without_leaks,
)
from kd_jax.data.rows import InTurn, Mapped
from kd_jax.data.text_files import existing, read_files
from kd_jax.errors import KdError

__all__ = ["Debian", "Directions", "Files", "Source", "Tfds", "Toy"]
TOYS = {"pairs": toy.pairs, "summaries": toy.summaries, "documents": toy.documents}
DIRECTION = ("source", "target", "direction")  # the fields of Directions


@dataclasses.dataclass(frozen=True)
class Files:
    """Local text: for each split one JSON-lines file, or one text file per field, a line per example.

    Attributes:
      train: paths, such as ("train.jsonl",) or ("train.en", "train.fr") in the order of the task's fields.
      validation, test: the same; empty to take `held_out` of the training examples each.
      unlabelled: the same, with the prompt's fields alone; empty for none.
      held_out: share of the training examples, chosen by their content.
      limit: examples kept of a split; 0 for all.
      labelled: training examples that keep their reference, the others becoming unlabelled; 0 for all.

    Examples:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for side, text in {"en": "a boat\\na bird\\n", "fr": "un bateau\\nun oiseau\\n"}.items():
      ...     _ = (folder / side).write_text(text)
      >>> paths = str(folder / "en"), str(folder / "fr")
      >>> list(Files(train=paths, validation=paths, test=paths, limit=1).splits(("en", "fr"))["test"])
      [{'en': 'a boat', 'fr': 'un bateau'}]
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    held_out: float = 0.02
    limit: int = 0
    labelled: int = 0

    @property
    def name(self) -> str:
        return " ".join(self.train)

    @property
    def _paths(self) -> dict[str, tuple[str, ...]]:
        """Split -> its files."""
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        return given | {UNLABELLED: self.unlabelled}

    def files(self) -> list[Path]:
        """Local files that decide the examples, to be digested."""
        return [existing(path) for paths in self._paths.values() for path in paths]

    def check(self) -> None:
        """Raises KdError for a field that cannot be; reads nothing, for a run outlives the files it was made from."""
        for split, paths in self._paths.items():
            if isinstance(paths, str):
                raise KdError(f"source.{split}: {paths!r} is one string; wanted a tuple of paths: ({paths!r},)")
        if not self.train:
            raise KdError("source.train: no files; wanted one .jsonl, or a text file for each field of the task")
        check_share(self.held_out)
        check_counts({"limit": self.limit, "labelled": self.labelled})

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """Looks through the files; see above. What is wrong in a line is named with it, when that is read."""
        refuse_unlabelled({"unlabelled": self.unlabelled, "labelled": self.labelled}, prompt_fields)
        missing = [split for split in SPLITS[1:] if not self._paths[split]]
        complete = (*fields, *held_out_fields)
        fields_of = {
            "train": complete if missing else fields,
            "validation": complete,
            "test": complete,
            UNLABELLED: prompt_fields,
        }
        examples = {
            split: read_files(paths, fields_of[split], f"source.{split}")
            for split, paths in self._paths.items()
            if paths
        }
        held_out = hold_out(examples["train"], fields[0], missing, self.held_out, self.limit)
        splits = {split: first(rows, self.limit) for split, rows in examples.items()} | held_out
        return drop_references(splits, fields[0], prompt_fields, self.labelled)


@dataclasses.dataclass(frozen=True)
class Toy:
    """Made-up text for tests and a first look (kd_jax.data.toy): needs no network and means nothing.

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
                streams.setdefault(split, []).extend(Mapped(rows, functools.partial(_directed, *way)) for way in ways)
        in_turn = {split: InTurn(*parts) for split, parts in streams.items()}
        splits, leaked = without_leaks(in_turn, "source", "target")
        if sentence := leak_sentence({split: len(rows) for split, rows in in_turn.items()}, leaked):
            runlog.say(f"data: {sentence}, in whatever direction")
        return splits


def _directed(source: str, target: str, row: Example) -> Example:
    """An example of two languages as one of a direction; without its target where it has none."""
    texts = {"source": row[source], "target": row[target]} if target in row else {"source": row[source]}
    return texts | {"direction": f"{source}-{target}"}


Source = Debian | Tfds | Files | Toy | Directions
