"""Text datasets of the TensorFlow Datasets catalogue, without TensorFlow."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_jax.errors import KdError
from kd_jax.runtime import progress
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
        from kd_jax.sources import tfds_reader

        refuse_unlabelled({"unlabelled": self.unlabelled, "labelled": self.labelled}, prompt_fields)
        complete = (*fields, *held_out_fields)
        if set(complete) - set(self.fields):
            raise KdError(f"source.fields: {', '.join(self.fields)}; the task reads {', '.join(complete)}: name them")
        builder = tfds_reader.builder_of(self.dataset, self.data_dir)
        tfds_reader.check_fields(builder, {field: self.fields[field] for field in complete})
        tfds_reader.prepare(builder)

        def read(split: str, fields: Sequence[str]) -> tfds_reader.TfdsRows:
            return tfds_reader.TfdsRows(builder, split, {field: self.fields[field] for field in fields})

        named = {"validation": self.validation, "test": self.test}
        named = {split: name or split for split, name in named.items() if name or split in builder.info.splits}
        missing = [split for split in SPLITS[1:] if split not in named]
        if missing:
            progress.log(
                f"data: {self.dataset} has the splits {', '.join(builder.info.splits)}; {100 * self.held_out:g}% of "
                f"{self.train!r}, chosen by their text, are held out for {' and as many for '.join(missing)}"
            )
        examples = {split: read(name, complete) for split, name in named.items()}
        if self.unlabelled:
            examples[UNLABELLED] = read(self.unlabelled, prompt_fields)
        train = read(self.train, complete if missing else fields)
        with tfds_reader.whole(train) as wanted:
            splits = hold_out(train, fields[0], missing, self.held_out, self.limit, wanted)
        for split, rows in examples.items():
            with tfds_reader.whole(rows) as wanted:
                splits[split] = first(rows, self.limit, wanted)
        return drop_references(splits, fields[0], prompt_fields, self.labelled)
