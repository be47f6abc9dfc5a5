"""TFDS builder of the package descriptions of this machine's Debian or Ubuntu mirror.

All examples of a source package are in one split, so that similar packages are not in two.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import tensorflow_datasets as tfds

from kd_jax.runtime import progress
from kd_jax.sources.base import SPLITS, Splits
from kd_jax.sources.debian_apt import LANGUAGES, fetch_lists
from kd_jax.sources.debian_texts import CONFIGS, Row, assign_split, generate_rows
from kd_jax.sources.splits import remove_leaks


def make_splits(examples: Iterable[Row], fields: Sequence[str]) -> tuple[Splits, Counter]:
    """Assign examples to splits and drop unsuitable ones; return the splits, and reason -> number of dropped examples.

    Dropped are untranslated or empty examples, translations of very different length, repetitions, and held-out
    examples whose first field is in the training data.
    """
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    seen, dropped = set(), Counter()
    for example in examples:
        texts = tuple(example[field] for field in fields)
        lengths = [len(text) for text in texts]
        if not all(texts) or len(set(texts)) < len(texts):
            dropped["untranslated"] += 1
        elif set(fields) <= set(LANGUAGES) and max(lengths) > 3 * min(lengths) + 20:
            dropped["of different length"] += 1
        elif texts in seen:
            dropped["repeated"] += 1
        else:
            seen.add(texts)
            splits[assign_split(example["source_package"])].append(example)
    clean, leaks = remove_leaks(dict(splits), fields[0])
    dropped["seen in an earlier split"] = sum(leaks.values())
    return clean, +dropped


class DebianDescriptions(tfds.core.GeneratorBasedBuilder):
    """Builder of the configurations in kd_jax.sources.debian_texts."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.0.0": "First version.",
        "1.1.0": "english: whole descriptions, no longer paragraphs; index: questions about packages.",
    }
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=config.description) for name, config in CONFIGS.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        config = cast(tfds.core.BuilderConfig, self.builder_config)  # by default the first
        names = ("package", "source_package", "kind", *CONFIGS[config.name].fields)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in names}),
            homepage="https://ddtp.debian.org",
        )

    def _split_generators(self, dl_manager):
        name = cast(tfds.core.BuilderConfig, self.builder_config).name
        lists = fetch_lists(Path(self.data_dir).parents[2])
        splits, dropped = make_splits(generate_rows(lists, name), CONFIGS[name].fields)
        counts = ", ".join(f"{len(examples):,} {split}" for split, examples in splits.items())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "none"
        progress.log(f"debian_descriptions/{name}: {counts} examples; dropped: {reasons}")
        return {split: enumerate(examples) for split, examples in splits.items()}

    def _generate_examples(self):
        raise NotImplementedError  # _split_generators returns the examples
