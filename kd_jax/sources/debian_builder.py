"""TFDS builder of the package descriptions of this machine's Debian or Ubuntu mirror.

All examples of a source package are in one split, so that similar packages are not in two.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from kd_jax.runtime import progress
from kd_jax.sources.base import SPLITS, Splits
from kd_jax.sources.debian_apt import LANGUAGES, fetch_lists
from kd_jax.sources.debian_texts import CONFIGS, Row, assign_split, generate_rows
from kd_jax.sources.splits import remove_leaks


def make_splits(examples: Iterable[Row], fields: Sequence[str]) -> tuple[Splits, Counter]:
    """Assign examples to splits and drop unsuitable ones.

    Dropped are untranslated or empty examples, translations of very different length, repetitions, and held-out
    examples whose first field is in the training data.

    Returns:
      (split -> examples, reason -> number of dropped examples).
    """
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    seen, dropped = set(), Counter()
    for example in examples:
        texts = tuple(example[field] for field in fields)
        if not all(texts) or len(set(texts)) < len(texts):
            dropped["untranslated"] += 1
        elif set(fields) <= set(LANGUAGES) and _lengths_differ(*texts):
            dropped["of different length"] += 1
        elif texts in seen:
            dropped["repeated"] += 1
        else:
            seen.add(texts)
            splits[assign_split(example["source_package"])].append(example)
    clean, leaks = remove_leaks(dict(splits), fields[0])
    dropped["seen in an earlier split"] = sum(leaks.values())
    return clean, +dropped


def describe_splits(name: str, counts: Mapping[str, int], dropped: Mapping[str, int]) -> str:
    """Describe the result of `make_splits` in one sentence.

    Args:
      name: of the dataset.
      counts: split -> examples.
      dropped: reason -> dropped examples.

    Examples:
      >>> describe_splits("debian", {"train": 9000, "test": 400}, {"untranslated": 1200, "repeated": 3})
      'debian: 9,000 train and 400 test examples; 1,203 dropped: 1,200 untranslated and 3 repeated'
      >>> describe_splits("debian", {"train": 9000, "test": 400}, {})
      'debian: 9,000 train and 400 test examples; 0 dropped'
    """
    sizes = _enumerate([f"{count:,} {split}" for split, count in counts.items()])
    reasons = _enumerate([f"{count:,} {reason}" for reason, count in dropped.items()])
    return f"{name}: {sizes} examples; {sum(dropped.values()):,} dropped" + (f": {reasons}" if dropped else "")


def _enumerate(parts: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _lengths_differ(a: str, b: str) -> bool:
    return max(len(a), len(b)) > 3 * min(len(a), len(b)) + 20


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

    @property
    def _config_name(self) -> str:
        assert self.builder_config is not None  # TFDS takes the first of BUILDER_CONFIGS as the default
        return self.builder_config.name

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("package", "source_package", "kind", *CONFIGS[self._config_name].fields)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in names}),
            homepage="https://ddtp.debian.org",
        )

    def _split_generators(self, dl_manager):
        name = self._config_name
        lists = fetch_lists(Path(self.data_dir).parents[2])
        splits, dropped = make_splits(generate_rows(lists, name), CONFIGS[name].fields)
        counts = {split: len(examples) for split, examples in splits.items()}
        progress.log(describe_splits(f"debian_descriptions/{name}", counts, dropped))
        return {split: enumerate(examples) for split, examples in splits.items()}

    def _generate_examples(self):
        raise NotImplementedError  # _split_generators returns the examples
