"""Local text files as a source: JSON lines, or one text file per field."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kd_jax.errors import KdError
from kd_jax.sources.base import SPLITS, UNLABELLED, Splits, check_counts, check_share, check_unlabelled
from kd_jax.sources.splits import drop_references, hold_out, take
from kd_jax.sources.text_files import expand, read_files, require_file


@dataclasses.dataclass(frozen=True)
class Files:
    r"""Local text: for each split JSON-lines files, or one text file per field with one example per line.

    A line of JSON has the task's fields, or a chat `messages` (kd_jax.sources.text_files.chat_fields). Other formats
    are refused with the command that converts them.

    Attributes:
      train: paths, such as ("train.jsonl",) or ("train.en", "train.fr") in the order of the task's fields. A path may
        be a pattern of several files' names, such as ``part-*.jsonl``.
      validation: the same; empty to take `held_out` of the training examples.
      test: the same; empty to take `held_out` of the training examples.
      unlabelled: the same, with the prompt's fields only; empty for none.
      held_out: share of the training examples for each missing split, chosen by their text.
      limit: maximum number of examples of a split; 0 for all.
      labelled: number of training examples that keep their reference, the others become unlabelled; 0 for all.

    Examples:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for side, text in {"en": "a boat\na bird\n", "fr": "un bateau\nun oiseau\n"}.items():
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
        """The training files."""
        return " ".join(self.train)

    @property
    def _paths(self) -> dict[str, tuple[str, ...]]:
        """Split -> its files."""
        return {"train": self.train, "validation": self.validation, "test": self.test, UNLABELLED: self.unlabelled}

    def files(self) -> list[Path]:
        """Return the files of all splits."""
        return [require_file(file) for paths in self._paths.values() for path in paths for file in expand(path)]

    def check(self) -> None:
        """Raise KdError if a field has an invalid value. A prepared workdir is usable without the files."""
        for split, paths in self._paths.items():
            if isinstance(paths, str):
                raise KdError(f"source.{split}: expected a tuple of paths, got the string {paths!r}. Use ({paths!r},).")
        if not self.train:
            raise KdError("source.train: expected one .jsonl, or a text file for each field, got no files. Name them.")
        check_share(self.held_out)
        check_counts(limit=self.limit, labelled=self.labelled)

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """Return the splits, as Source.splits; a line is checked when it is read."""
        check_unlabelled(prompt_fields, unlabelled=self.unlabelled, labelled=self.labelled)
        missing = [split for split in SPLITS[1:] if not self._paths[split]]
        fields_of = dict.fromkeys(SPLITS, (*fields, *held_out_fields)) | {UNLABELLED: tuple(prompt_fields)}
        if not missing:
            fields_of["train"] = tuple(fields)
        paths_of = {split: paths for split, paths in self._paths.items() if paths}
        examples = {split: read_files(paths, fields_of[split], f"source.{split}") for split, paths in paths_of.items()}
        held_out = hold_out(examples["train"], fields[0], missing, self.held_out, self.limit)
        splits = {split: take(rows, self.limit) for split, rows in examples.items()} | held_out
        return drop_references(splits, fields[0], prompt_fields, self.labelled)
