"""Text files of the user: JSON lines, or one text file a field."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kd_jax.errors import KdError
from kd_jax.sources.splits import (
    SPLITS,
    UNLABELLED,
    Splits,
    check_counts,
    check_share,
    drop_references,
    first,
    hold_out,
    refuse_unlabelled,
)
from kd_jax.sources.text_files import existing, read_files


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
