"""Sources that TFDS prepares as ArrayRecord: its catalogue, and Debian. TFDS is imported when they are read."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from kd_jax.artifacts import runlog
from kd_jax.data.debian_texts import CONFIGS
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
    refuse_unlabelled,
)
from kd_jax.data.text_files import is_blank
from kd_jax.errors import KdError


@dataclasses.dataclass(frozen=True)
class Tfds:
    """Any text dataset of the TensorFlow Datasets catalogue, without TensorFlow.

    Attributes:
      dataset: its name there, such as "wmt19_translate/de-en".
      fields: our field -> the path of the dataset's, such as {"en": "translation/en"}.
      train: its split to train on, in its own slicing syntax.
      validation, test: the same; "" for the split of that name, or, where there is none, `held_out` of the
        training examples.
      unlabelled: the same, of text whose reference is not read; "" for none.
      held_out: share of the training examples, chosen by their content.
      data_dir: where datasets are prepared; empty for TFDS's own.
      limit: examples kept of a split; 0 for all.
      labelled: training examples that keep their reference, the others becoming unlabelled; 0 for all.

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
    unlabelled: str = ""
    held_out: float = 0.02
    data_dir: str = ""
    limit: int = 0
    labelled: int = 0

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
        check_share(self.held_out)
        check_counts({"limit": self.limit, "labelled": self.labelled})

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """The splits, prepared as ArrayRecord where they are not yet; see above."""
        from kd_jax.data import tfds

        refuse_unlabelled({"unlabelled": self.unlabelled, "labelled": self.labelled}, prompt_fields)
        complete = (*fields, *held_out_fields)
        if set(complete) - set(self.fields):
            raise KdError(f"source.fields: {', '.join(self.fields)}; the task reads {', '.join(complete)}: name them")
        builder = tfds.builder_of(self.dataset, self.data_dir)
        tfds.check_fields(builder, {field: self.fields[field] for field in complete})
        tfds.prepare(builder)

        def read(split: str, fields: Sequence[str]) -> tfds.Stored:
            return tfds.Stored(builder, split, {field: self.fields[field] for field in fields})

        named = {"validation": self.validation, "test": self.test}
        named = {split: name or split for split, name in named.items() if name or split in builder.info.splits}
        missing = [split for split in SPLITS[1:] if split not in named]
        if missing:
            runlog.say(
                f"data: {self.dataset} has the splits {', '.join(builder.info.splits)}; {100 * self.held_out:g}% of "
                f"{self.train!r}, chosen by their text, are held out for {' and as many for '.join(missing)}"
            )
        examples = {split: read(name, complete) for split, name in named.items()}
        if self.unlabelled:
            examples[UNLABELLED] = read(self.unlabelled, prompt_fields)
        train = read(self.train, complete if missing else fields)
        with tfds.whole(train) as wanted:
            splits = hold_out(train, fields[0], missing, self.held_out, self.limit, wanted)
        for split, rows in examples.items():
            with tfds.whole(rows) as wanted:
                splits[split] = first(rows, self.limit, wanted)
        return drop_references(splits, fields[0], prompt_fields, self.labelled)


@dataclasses.dataclass(frozen=True)
class Debian:
    """Package descriptions of this machine's Debian or Ubuntu release, through apt (kd_jax.data.debian).

    Attributes:
      config: "en-fr" or "en-de" (fields en and fr, or de), "summaries" (description, synopsis), "english" (text:
        long descriptions), "index" (prompt, response: questions about packages).
      kinds: of examples: of a language pair "synopsis" (one line) and "paragraph"; of the index what is asked for,
        "synopsis", "package" and "section"; empty for all.
      max_characters: longest text kept, in any field, in every split; 0 for all.
      data_dir: where apt's lists and the prepared dataset are kept.
      limit: examples kept of a split; 0 for all.
      labelled: training examples that keep their reference, the others becoming unlabelled; 0 for all.

    Examples:
      >>> Debian("en-fr", kinds=("synopsis",), max_characters=200).name
      'debian_descriptions/en-fr (synopsis, to 200 characters)'
    """

    config: Literal["en-fr", "en-de", "summaries", "english", "index"] = "en-fr"
    kinds: tuple[str, ...] = ()
    max_characters: int = 0
    data_dir: str = "~/.cache/kd_jax"
    limit: int = 0
    labelled: int = 0

    @property
    def name(self) -> str:
        kinds = " and ".join(self.kinds or CONFIGS[self.config].kinds)
        most = f", to {self.max_characters} characters" if self.max_characters else ""
        return f"debian_descriptions/{self.config} ({kinds}{most})"

    def files(self) -> list[Path]:
        """Local files that decide the examples, to be digested."""
        return []

    def check(self) -> None:
        """Raises KdError for a field that cannot be; reads nothing."""
        if self.config not in CONFIGS:
            raise KdError(f"source.config: {self.config!r}; wanted one of {', '.join(CONFIGS)}")
        kinds = CONFIGS[self.config].kinds
        if set(self.kinds) - set(kinds):
            raise KdError(
                f"source.kinds: {self.kinds}; {self.config} has {', '.join(kinds)}: name some, or none for all"
            )
        check_counts({"max_characters": self.max_characters, "limit": self.limit, "labelled": self.labelled})

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """The splits, prepared by apt where they are not yet; a source package is in one of them only."""
        from kd_jax.data import debian, tfds

        refuse_unlabelled({"labelled": self.labelled}, prompt_fields)
        builder = debian.DebianDescriptions(
            config=self.config, data_dir=Path(self.data_dir).expanduser(), file_format="array_record"
        )
        texts = (*fields, *held_out_fields)
        columns = {field: field for field in ("kind", *texts)}
        tfds.check_fields(builder, columns)
        tfds.prepare(builder)
        longest, kinds = self.max_characters or math.inf, self.kinds or CONFIGS[self.config].kinds

        def wanted(row: Example) -> bool:
            fits = row["kind"] in kinds and all(len(row[field]) <= longest for field in texts)
            return fits and not any(map(is_blank, row.values()))

        splits = {split: first(tfds.Stored(builder, split, columns), self.limit, wanted) for split in SPLITS}
        return drop_references(splits, fields[0], prompt_fields, self.labelled)
