"""Where raw examples come from: one seam, `splits(folder)`, for every source."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kd_jax.errors import KdError

Example = dict[str, str]
Splits = dict[str, list[Example]]
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Tfds:
    """Any text dataset of the TensorFlow Datasets catalogue, without TensorFlow.

    Attributes:
      dataset: its name there, such as "wmt19_translate/de-en".
      fields: our field -> the dataset's, such as {"en": "en", "de": "de"}.
      train, validation, test: its splits, in its own slicing syntax.
      data_dir: where datasets are prepared; empty for TFDS's own.
      limit: examples kept of a split; 0 for all.
    """

    dataset: str
    fields: Mapping[str, str]
    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    data_dir: str = ""
    limit: int = 0

    @property
    def name(self) -> str:
        return self.dataset

    def files(self) -> list[Path]:
        """Local files that decide the examples, to be digested."""
        return []

    def splits(self, fields: Sequence[str]) -> Splits:
        """The three splits, prepared as ArrayRecord where they are not yet."""
        import tensorflow_datasets as tfds

        folder = str(Path(self.data_dir).expanduser()) if self.data_dir else None
        try:
            builder = tfds.builder(self.dataset, data_dir=folder, file_format="array_record")
        except (tfds.core.DatasetNotFoundError, ValueError) as error:
            raise KdError(
                f"source.dataset: {self.dataset!r} ({str(error).splitlines()[0]}); see tfds.list_builders()"
            ) from error
        tfds.disable_progress_bar()
        builder.download_and_prepare()
        return {
            split: [
                {ours: _text(row, theirs, self.dataset) for ours, theirs in self.fields.items()}
                for row in _first(builder.as_data_source(split=vars(self)[split]), self.limit)
            ]
            for split in SPLITS
        }


@dataclasses.dataclass(frozen=True)
class Debian:
    """Package descriptions of this machine's Debian or Ubuntu release, through apt (kd_jax.data.debian).

    Attributes:
      pair: "en-fr" or "en-de".
      kinds: "synopsis" (one line), "paragraph", or both.
      max_characters: longest text kept, of either side, in every split; 0 for all.
      data_dir: where apt's lists and the prepared dataset are kept.
      limit: examples kept of a split; 0 for all.
    """

    pair: Literal["en-fr", "en-de"] = "en-fr"
    kinds: tuple[str, ...] = ("synopsis",)
    max_characters: int = 0
    data_dir: str = "~/.cache/kd_jax"
    limit: int = 0

    @property
    def name(self) -> str:
        most = f", to {self.max_characters} characters" if self.max_characters else ""
        return f"debian_descriptions/{self.pair} ({' and '.join(self.kinds)}{most})"

    def files(self) -> list[Path]:
        """Local files that decide the examples, to be digested."""
        return []

    def splits(self, fields: Sequence[str]) -> Splits:
        """The three splits; a source package is in one of them only."""
        from kd_jax.data import debian

        unknown = set(self.kinds) - set(debian.KINDS)
        if unknown or not self.kinds:
            raise KdError(f"source.kinds: {self.kinds}; wanted some of {debian.KINDS}")
        builder = debian.DebianDescriptions(
            config=self.pair, data_dir=str(Path(self.data_dir).expanduser()), file_format="array_record"
        )
        debian.tfds.disable_progress_bar()
        builder.download_and_prepare()
        most = self.max_characters or math.inf

        def kept(row: Example) -> bool:
            return row["kind"] in self.kinds and all(len(row[field]) <= most for field in fields)

        splits = {}
        for split in SPLITS:
            data = builder.as_data_source(split)
            rows = ({key: _text(row, key, self.name) for key in ("kind", *fields)} for row in data)
            splits[split] = list(_first(filter(kept, rows), self.limit))
        return splits


@dataclasses.dataclass(frozen=True)
class Files:
    """Local text: for each split one JSON-lines file, or one text file per field, a line per example.

    Attributes:
      train: paths, such as ("train.jsonl",) or ("train.en", "train.fr") in the order of the task's fields.
      validation, test: the same; empty to take `held_out` of the training examples each.
      held_out: share of the training examples, chosen by their content.
      limit: examples kept of a split; 0 for all.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    held_out: float = 0.02
    limit: int = 0

    @property
    def name(self) -> str:
        return " ".join(self.train)

    def files(self) -> list[Path]:
        """Local files that decide the examples, to be digested."""
        return [existing(path) for path in (*self.train, *self.validation, *self.test)]

    def splits(self, fields: Sequence[str]) -> Splits:
        """Reads all files; raises KdError naming the file, and the line where there is one."""
        train = read_files(self.train, fields, "source.train")
        given = {
            "validation": read_files(self.validation, fields, "source.validation") if self.validation else None,
            "test": read_files(self.test, fields, "source.test") if self.test else None,
        }
        for split, missing in ((s, given[s] is None) for s in given):
            if missing:
                apart = [_chance(split + example[fields[0]]) < self.held_out for example in train]
                given[split] = [example for example, out in zip(train, apart, strict=True) if out]
                train = [example for example, out in zip(train, apart, strict=True) if not out]
        return {split: list(_first(rows, self.limit)) for split, rows in ({"train": train} | given).items()}


@dataclasses.dataclass(frozen=True)
class Toy:
    """A made-up language pair for tests and a first look: needs no network and means nothing.

    English number phrases and colours, "translated" word by word with the colour moved behind its noun.

    Attributes:
      examples: training examples; an eighth as many for validation and for test.
      seed: decides them.
    """

    examples: int = 400
    seed: int = 0

    name = "toy"

    def files(self) -> list[Path]:
        """Local files that decide the examples, to be digested."""
        return []

    def splits(self, fields: Sequence[str]) -> Splits:
        """Distinct sentences, cut into the three splits."""
        rng = np.random.default_rng(self.seed)
        numbers, colours, nouns = (
            ["one", "two", "three", "four", "five", "six", "seven"],
            ["red", "blue", "green", "white", "black"],
            (["houses", "boats", "birds", "stones", "trees", "clouds", "doors", "lamps"]),
        )
        seen: dict[str, str] = {}
        while len(seen) < self.examples + 2 * (self.examples // 8):
            parts = [[str(rng.choice(words)) for words in (numbers, colours, nouns)] for _ in range(rng.integers(1, 3))]
            source = " and ".join(" ".join(part) for part in parts)
            seen[source] = " et ".join(f"{n[::-1]} {o[::-1]} {c[::-1]}" for n, c, o in parts)
        rows = [dict(zip(fields, pair, strict=True)) for pair in seen.items()]
        held = self.examples // 8
        return {"test": rows[:held], "validation": rows[held : 2 * held], "train": rows[2 * held :]}


Source = Debian | Tfds | Files | Toy


def read_files(paths: Sequence[str], fields: Sequence[str], where: str) -> list[Example]:
    """Examples of one JSON-lines file, or of one text file per field."""
    if len(paths) == 1:
        return [_json_example(line, fields, f"{paths[0]}, line {n}") for n, line in enumerate(read_lines(paths[0]), 1)]
    if len(paths) != len(fields):
        raise KdError(
            f"{where}: {len(paths)} files for the fields {', '.join(fields)}; wanted one .jsonl or one for each"
        )
    sides = [read_lines(path) for path in paths]
    if len({len(side) for side in sides}) > 1:
        counts = ", ".join(f"{path} has {len(side)} lines" for path, side in zip(paths, sides, strict=True))
        raise KdError(f"{where}: {counts}; line n of one must be line n of the other")
    return [dict(zip(fields, row, strict=True)) for row in zip(*sides, strict=True)]


def existing(path: str) -> Path:
    """The file's path; raises KdError if there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise KdError(f"{path}: no such file")
    return file


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 text file; raises KdError if it is missing, empty or not UTF-8."""
    lines = existing(path).read_bytes().split(b"\n")
    lines = lines[:-1] if not lines[-1] else lines
    if not lines:
        raise KdError(f"{path}: empty")
    for number, line in enumerate(lines, 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise KdError(
                f"{path}, line {number}: not UTF-8 (byte {error.start + 1}); convert it with iconv"
            ) from error
    return [line.decode().rstrip("\r") for line in lines]


def without_leaks(splits: Splits, source: str) -> tuple[Splits, dict[str, int]]:
    """Drops held-out examples whose source text, case apart, is trained on (or, for test, validated on).

    Returns:
      (splits, how many were dropped of each).
    """
    seen, kept, dropped = set(), {}, {}
    for split in SPLITS:
        kept[split] = [row for row in splits[split] if row[source].casefold() not in seen]
        dropped[split] = len(splits[split]) - len(kept[split])
        seen |= {row[source].casefold() for row in splits[split]}
    return kept, dropped


def _json_example(line: str, fields: Sequence[str], where: str) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise KdError(f"{where}: not JSON ({error.msg})") from error
    for field in fields:
        if not isinstance(row, dict) or not isinstance(row[field] if field in row else None, str):
            raise KdError(f"{where}: no text in the field {field!r}; wanted the fields {', '.join(fields)}")
    return {field: row[field] for field in fields}


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise KdError(f"source.fields: {where} has no field {field!r}; it has {', '.join(sorted(row))}")
    value = row[field]
    return value.decode() if isinstance(value, bytes) else str(value)


def _first(rows: Iterable[Any], limit: int) -> Iterable[Any]:
    """All rows, or the first `limit`."""
    for n, row in enumerate(rows):
        if limit and n >= limit:
            return
        yield row


def _chance(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56
