"""Descriptions of Debian packages as a source: translations, summaries, text and instructions."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kd_jax.errors import KdError
from kd_jax.sources.base import SPLITS, Splits, check_counts, check_unlabelled
from kd_jax.sources.debian_texts import CONFIGS
from kd_jax.sources.splits import drop_references, take
from kd_jax.sources.text_files import is_blank
from kd_jax.types import Example


@dataclasses.dataclass(frozen=True)
class Debian:
    """Package descriptions of this machine's Debian or Ubuntu release, fetched with apt.

    Attributes:
      config: "en-fr" or "en-de" (fields en and fr, or de), "summaries" (description, synopsis), "english" (text:
        long descriptions), "index" (prompt, response: questions about packages).
      kinds: of examples; empty for all. A language pair has "synopsis" (one line) and "paragraph". The index has the
        kinds of answers "synopsis", "package" and "section".
      max_characters: maximum length of every field, in every split; 0 for no limit.
      data_dir: folder of apt's lists and of the prepared dataset.
      limit: maximum number of examples of a split; 0 for all.
      labelled: number of training examples that keep their reference, the others become unlabelled; 0 for all.

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
        """The dataset, its kinds and the maximum length."""
        kinds = " and ".join(self.kinds or CONFIGS[self.config].kinds)
        length = f", to {self.max_characters} characters" if self.max_characters else ""
        return f"debian_descriptions/{self.config} ({kinds}{length})"

    def files(self) -> list[Path]:
        """Return no files: apt fetches the text."""
        return []

    def check(self) -> None:
        """Raise KdError if a field has an invalid value."""
        if self.config not in CONFIGS:
            raise KdError(f"source.config: expected {', '.join(CONFIGS)}, got {self.config!r}. Choose one.")
        kinds = CONFIGS[self.config].kinds
        if set(self.kinds) - set(kinds):
            names = ", ".join(kinds)
            raise KdError(f"source.kinds: expected kinds of {self.config} ({names}), got {self.kinds}. Name some.")
        check_counts(max_characters=self.max_characters, limit=self.limit, labelled=self.labelled)

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """Return the splits, as Source.splits; a source package's examples are all in one split."""
        from kd_jax.sources import debian_builder, tfds_reader  # import tensorflow_datasets, which takes seconds

        check_unlabelled(prompt_fields, labelled=self.labelled)
        data_dir = Path(self.data_dir).expanduser()
        builder = debian_builder.DebianDescriptions(config=self.config, data_dir=data_dir, file_format="array_record")
        texts = (*fields, *held_out_fields)
        columns = {field: field for field in ("kind", *texts)}
        tfds_reader.check_fields(builder, columns)
        tfds_reader.prepare(builder)
        kinds, maximum = self.kinds or CONFIGS[self.config].kinds, self.max_characters or math.inf

        def keep(row: Example) -> bool:
            short = all(len(row[field]) <= maximum for field in texts)
            return row["kind"] in kinds and short and not any(map(is_blank, row.values()))

        rows = {split: tfds_reader.TfdsRows(builder, split, columns) for split in SPLITS}
        splits: Splits = {split: take(examples, self.limit, keep) for split, examples in rows.items()}
        return drop_references(splits, fields[0], prompt_fields, self.labelled)
