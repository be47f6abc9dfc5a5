"""Descriptions of Debian packages, as translations, summaries, text and instructions."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kd_jax.errors import KdError
from kd_jax.sources.debian_texts import CONFIGS
from kd_jax.sources.splits import (
    SPLITS,
    Example,
    Splits,
    check_counts,
    drop_references,
    first,
    refuse_unlabelled,
)
from kd_jax.sources.text_files import is_blank


@dataclasses.dataclass(frozen=True)
class Debian:
    """Package descriptions of this machine's Debian or Ubuntu release, through apt (kd_jax.sources.debian_builder).

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
        from kd_jax.sources import debian_builder, tfds_reader

        refuse_unlabelled({"labelled": self.labelled}, prompt_fields)
        builder = debian_builder.DebianDescriptions(
            config=self.config, data_dir=Path(self.data_dir).expanduser(), file_format="array_record"
        )
        texts = (*fields, *held_out_fields)
        columns = {field: field for field in ("kind", *texts)}
        tfds_reader.check_fields(builder, columns)
        tfds_reader.prepare(builder)
        longest, kinds = self.max_characters or math.inf, self.kinds or CONFIGS[self.config].kinds

        def wanted(row: Example) -> bool:
            fits = row["kind"] in kinds and all(len(row[field]) <= longest for field in texts)
            return fits and not any(map(is_blank, row.values()))

        splits = {split: first(tfds_reader.TfdsRows(builder, split, columns), self.limit, wanted) for split in SPLITS}
        return drop_references(splits, fields[0], prompt_fields, self.labelled)
