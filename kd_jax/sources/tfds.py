"""Text datasets of the TensorFlow Datasets catalogue as a source, without TensorFlow."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.sources.base import SPLITS, UNLABELLED, Splits, check_counts, check_share, check_unlabelled
from kd_jax.sources.splits import drop_references, hold_out, take

if TYPE_CHECKING:
    from kd_jax.sources.tfds_reader import TfdsRows


@dataclasses.dataclass(frozen=True)
class Tfds:
    """Any text dataset of the TensorFlow Datasets catalogue, without TensorFlow.

    Attributes:
      dataset: name in the catalogue, such as "wmt19_translate/de-en".
      fields: our field -> path of the dataset's feature, such as {"en": "translation/en"}.
      train: training split, in TFDS's slicing syntax.
      validation: the same; "" for the split of that name, or, if there is none, `held_out` of the training examples.
      test: the same as `validation`, for the test split.
      unlabelled: the same, a split whose references are not read; "" for none.
      held_out: share of the training examples for each missing split, chosen by their text.
      data_dir: folder of prepared datasets; "" for TFDS's default.
      limit: maximum number of examples of a split; 0 for all.
      labelled: number of training examples that keep their reference, the others become unlabelled; 0 for all.

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
        """The dataset's name in the catalogue."""
        return self.dataset

    def files(self) -> list[Path]:
        """Return no files: the dataset's name and version decide the examples."""
        return []

    def check(self) -> None:
        """Raise KdError if a field has an invalid value."""
        if not self.dataset or not self.train or not self.fields:
            raise KdError(
                "source: expected dataset, fields and train, got an empty one. Use Tfds('lm1b', {'text': 'text'})."
            )
        check_share(self.held_out)
        check_counts(limit=self.limit, labelled=self.labelled)

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """Return the splits, as Source.splits; prepare the dataset as ArrayRecord if necessary."""
        from kd_jax.sources import tfds_reader  # imports tensorflow_datasets, which takes seconds

        check_unlabelled(prompt_fields, unlabelled=self.unlabelled, labelled=self.labelled)
        all_fields = (*fields, *held_out_fields)
        if set(all_fields) - set(self.fields):
            names, ours = ", ".join(all_fields), ", ".join(self.fields)
            raise KdError(f"source.fields: expected the task's fields {names}, got {ours}. Add the others.")
        builder = tfds_reader.find_builder(self.dataset, self.data_dir)
        tfds_reader.check_fields(builder, {field: self.fields[field] for field in all_fields})
        tfds_reader.prepare(builder)

        def read(split: str, fields: Sequence[str]) -> "TfdsRows":
            return tfds_reader.TfdsRows(builder, split, {field: self.fields[field] for field in fields})

        names = {"validation": self.validation, "test": self.test}
        names = {split: name or split for split, name in names.items() if name or split in builder.info.splits}
        missing = [split for split in SPLITS[1:] if split not in names]
        if missing:
            progress.log(
                f"data: {self.dataset} has the splits {', '.join(builder.info.splits)}; {100 * self.held_out:g}% of "
                f"{self.train!r} are held out for {' and as many for '.join(missing)}"
            )
        examples = {split: read(name, all_fields) for split, name in names.items()}
        if self.unlabelled:
            examples[UNLABELLED] = read(self.unlabelled, prompt_fields)
        train = read(self.train, all_fields if missing else fields)
        with tfds_reader.without_blanks(train) as keep:
            splits = hold_out(train, fields[0], missing, self.held_out, self.limit, keep)
        for split, rows in examples.items():
            with tfds_reader.without_blanks(rows) as keep:
                splits[split] = take(rows, self.limit, keep)
        return drop_references(splits, fields[0], prompt_fields, self.labelled)
