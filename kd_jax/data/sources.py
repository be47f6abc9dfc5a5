"""Where raw examples come from: a source checks itself, names its files, and gives three splits."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from kd_jax.artifacts import runlog
from kd_jax.data import toy
from kd_jax.data.held_out import SPLITS, Example, Splits, hold_out
from kd_jax.data.text_files import existing, read_files
from kd_jax.errors import KdError

PAIRS = ("en-fr", "en-de")
KINDS = ("synopsis", "paragraph")


@dataclasses.dataclass(frozen=True)
class Tfds:
    """Any text dataset of the TensorFlow Datasets catalogue, without TensorFlow.

    Attributes:
      dataset: its name there, such as "wmt19_translate/de-en".
      fields: our field -> the path of the dataset's, such as {"en": "translation/en"}.
      train: its split to train on, in its own slicing syntax.
      validation, test: the same; "" for the split of that name, or, where there is none, `held_out` of the
        training examples.
      held_out: share of the training examples, chosen by their content.
      data_dir: where datasets are prepared; empty for TFDS's own.
      limit: examples kept of a split; 0 for all.

    References:
      https://www.tensorflow.org/datasets/catalog/overview, https://www.tensorflow.org/datasets/splits

    Examples:
      >>> Tfds("wmt19_translate/de-en", fields={"en": "en", "de": "de"}).name
      'wmt19_translate/de-en'
    """

    dataset: str
    fields: Mapping[str, str]
    train: str = "train"
    validation: str = ""
    test: str = ""
    held_out: float = 0.02
    data_dir: str = ""
    limit: int = 0

    @property
    def name(self) -> str:
        return self.dataset

    def files(self) -> list[Path]:
        """Local files that decide the examples, to be digested."""
        return []

    def check(self) -> None:
        """Raises KdError for a field that cannot be; reads nothing."""
        if not self.dataset or not self.train or not self.fields:
            raise KdError("source: dataset, fields and train are wanted, such as 'lm1b', {'text': 'text'}, 'train'")
        _check_share(self.held_out)
        _check_not_negative("limit", self.limit)

    def splits(self, fields: Sequence[str]) -> Splits:
        """The three splits, prepared as ArrayRecord where they are not yet.

        Args:
          fields: the task's; all must be in `self.fields`.

        Raises:
          KdError: if dataset, field or split is not there, or cannot be prepared here.
        """
        from kd_jax.data import tfds

        if set(fields) - set(self.fields):
            raise KdError(f"source.fields: {', '.join(self.fields)}; the task reads {', '.join(fields)}: name them")
        paths = {field: self.fields[field] for field in fields}
        builder = tfds.builder_of(self.dataset, self.data_dir)
        tfds.check_fields(builder, paths)
        tfds.prepare(builder)
        named = {"validation": self.validation, "test": self.test}
        named = {split: name or split for split, name in named.items() if name or split in builder.info.splits}
        missing = [split for split in SPLITS[1:] if split not in named]
        if missing:
            runlog.say(
                f"data: {self.dataset} has the splits {', '.join(builder.info.splits)}; {100 * self.held_out:g}% of "
                f"{self.train!r}, chosen by their text, are held out for {' and as many for '.join(missing)}"
            )
        examples = {split: tfds.read(builder, name, paths) for split, name in named.items()}
        train = hold_out(tfds.read(builder, self.train, paths), fields[0], missing, self.held_out, self.limit)
        return train | {split: _first(rows, self.limit) for split, rows in examples.items()}


@dataclasses.dataclass(frozen=True)
class Debian:
    """Package descriptions of this machine's Debian or Ubuntu release, through apt (kd_jax.data.debian).

    Attributes:
      pair: "en-fr" or "en-de".
      kinds: "synopsis" (one line), "paragraph", or both.
      max_characters: longest text kept, of either side, in every split; 0 for all.
      data_dir: where apt's lists and the prepared dataset are kept.
      limit: examples kept of a split; 0 for all.

    Examples:
      >>> Debian(pair="en-fr", max_characters=200).name
      'debian_descriptions/en-fr (synopsis, to 200 characters)'
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

    def check(self) -> None:
        """Raises KdError for a field that cannot be; reads nothing."""
        if self.pair not in PAIRS:
            raise KdError(f"source.pair: {self.pair!r}; wanted {' or '.join(PAIRS)}")
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise KdError(f"source.kinds: {self.kinds}; wanted {' or '.join(KINDS)}, or both")
        _check_not_negative("max_characters", self.max_characters)
        _check_not_negative("limit", self.limit)

    def splits(self, fields: Sequence[str]) -> Splits:
        """The three splits; a source package is in one of them only.

        Args:
          fields: the task's, of the pair's two languages.

        Raises:
          KdError: if the task reads another language, or there is no apt or network.
        """
        from kd_jax.data import debian, tfds

        builder = debian.DebianDescriptions(
            config=self.pair, data_dir=Path(self.data_dir).expanduser(), file_format="array_record"
        )
        columns = {field: field for field in ("kind", *fields)}
        tfds.check_fields(builder, columns)
        tfds.prepare(builder)
        longest = self.max_characters or math.inf

        def wanted(row: Example) -> bool:
            return row["kind"] in self.kinds and all(len(row[field]) <= longest for field in fields)

        return {split: _first(filter(wanted, tfds.read(builder, split, columns)), self.limit) for split in SPLITS}


@dataclasses.dataclass(frozen=True)
class Files:
    """Local text: for each split one JSON-lines file, or one text file per field, a line per example.

    Attributes:
      train: paths, such as ("train.jsonl",) or ("train.en", "train.fr") in the order of the task's fields.
      validation, test: the same; empty to take `held_out` of the training examples each.
      held_out: share of the training examples, chosen by their content.
      limit: examples kept of a split; 0 for all.

    Examples:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for side, text in {"en": "a boat\\na bird\\n", "fr": "un bateau\\nun oiseau\\n"}.items():
      ...     _ = (folder / side).write_text(text)
      >>> paths = str(folder / "en"), str(folder / "fr")
      >>> Files(train=paths, validation=paths, test=paths, limit=1).splits(("en", "fr"))["test"]
      [{'en': 'a boat', 'fr': 'un bateau'}]
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

    def check(self) -> None:
        """Raises KdError for a field that cannot be; reads nothing, for a run outlives the files it was made from."""
        for split, paths in zip(SPLITS, (self.train, self.validation, self.test), strict=True):
            if isinstance(paths, str):
                raise KdError(f"source.{split}: {paths!r} is one string; wanted a tuple of paths: ({paths!r},)")
        if not self.train:
            raise KdError("source.train: no files; wanted one .jsonl, or a text file for each field of the task")
        _check_share(self.held_out)
        _check_not_negative("limit", self.limit)

    def splits(self, fields: Sequence[str]) -> Splits:
        """Reads all files; raises KdError naming the file, and the line where there is one."""
        named = {"validation": self.validation, "test": self.test}
        missing = [split for split, paths in named.items() if not paths]
        examples = {split: read_files(paths, fields, f"source.{split}") for split, paths in named.items() if paths}
        train = read_files(self.train, fields, "source.train")
        train = hold_out(train, fields[0], missing, self.held_out, self.limit)
        return train | {split: _first(rows, self.limit) for split, rows in examples.items()}


@dataclasses.dataclass(frozen=True)
class Toy:
    """A made-up language pair for tests and a first look: needs no network and means nothing.

    English number phrases and colours, "translated" word by word with the colour moved behind its noun.

    Attributes:
      examples: training examples; an eighth as many for validation and for test.
      seed: decides them.

    Examples:
      >>> splits = Toy(examples=80).splits(("en", "fr"))
      >>> {split: len(rows) for split, rows in splits.items()}
      {'test': 10, 'validation': 10, 'train': 80}
      >>> splits["train"][0]
      {'en': 'two black stones and seven white clouds', 'fr': 'owt senots kcalb et neves sduolc etihw'}
    """

    examples: int = 400
    seed: int = 0

    name = "toy"

    def files(self) -> list[Path]:
        """Local files that decide the examples, to be digested."""
        return []

    def check(self) -> None:
        """Raises KdError for a field that cannot be: there are 78,680 sentences, and each is used once."""
        if not 8 <= self.examples <= 50_000:
            raise KdError(f"source.examples: {self.examples}; wanted 8 to 50,000")
        _check_not_negative("seed", self.seed)

    def splits(self, fields: Sequence[str]) -> Splits:
        """Distinct sentences, cut into the three splits."""
        if len(fields) != 2:
            raise KdError(f"source Toy: a language pair; the task reads {', '.join(fields)}: take another source")
        held = self.examples // 8
        pairs = toy.sentences(self.examples + 2 * held, self.seed)
        rows = [dict(zip(fields, pair, strict=True)) for pair in pairs]
        return {"test": rows[:held], "validation": rows[held : 2 * held], "train": rows[2 * held :]}


Source = Debian | Tfds | Files | Toy


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise KdError(f"source.held_out: {share}; wanted a share of the training examples, between 0 and 1")


def _check_not_negative(field: str, value: int) -> None:
    if value < 0:
        raise KdError(f"source.{field}: {value}; wanted 0 or more")


def _first(rows: Iterable[Example], limit: int) -> list[Example]:
    """All rows, or the first `limit`."""
    return list(itertools.islice(rows, limit or None))
