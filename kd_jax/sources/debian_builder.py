"""TFDS builder of package descriptions and what is made of them, from this machine's Debian or Ubuntu mirror.

A source package, with all that it builds, falls into one split, so that near-twins do not cross.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from kd_jax.runtime import progress
from kd_jax.sources.apt import LANGUAGES, fetch_lists
from kd_jax.sources.debian_texts import CONFIGS, Row, rows, split_of
from kd_jax.sources.splits import SPLITS, Splits, remove_leaks


def clean_splits(examples: Iterable[Row], fields: Sequence[str]) -> tuple[Splits, Counter]:
    """(split -> examples, why others were dropped -> how many).

    Dropped: untranslated or empty ones, translations of very different length, repetitions, and held-out
    examples whose first field is trained on.
    """
    splits: Splits = {split: [] for split in SPLITS}
    seen, dropped = set(), Counter()
    for example in examples:
        texts = tuple(example[field] for field in fields)
        if not all(texts) or len(set(texts)) < len(texts):
            dropped["untranslated"] += 1
        elif set(fields) <= set(LANGUAGES) and _lopsided(*texts):
            dropped["lopsided"] += 1
        elif texts in seen:
            dropped["repeated"] += 1
        else:
            seen.add(texts)
            splits[split_of(example["source_package"])].append(example)
    splits, leaked = remove_leaks(splits, fields[0])
    dropped["seen in an earlier split"] = sum(leaked.values())
    return splits, +dropped


def clean_sentence(name: str, counts: Mapping[str, int], dropped: Mapping[str, int]) -> str:
    """What `clean_splits` did, in one sentence.

    Args:
      name: of the dataset.
      counts: split -> examples that stay.
      dropped: why others went -> how many.

    Examples:
      >>> clean_sentence("debian", {"train": 9000, "test": 400}, {"untranslated": 1200, "repeated": 3})
      'debian: 9,000 train and 400 test examples stay; 1,203 were dropped: 1,200 untranslated and 3 repeated'
      >>> clean_sentence("debian", {"train": 9000, "test": 400}, {})
      'debian: 9,000 train and 400 test examples stay; none was dropped'
    """
    stay = _enumerated([f"{count:,} {split}" for split, count in counts.items()])
    reasons = _enumerated([f"{count:,} {reason}" for reason, count in dropped.items()])
    total = sum(dropped.values())
    went = "none was dropped" if not total else f"{total:,} {'was' if total == 1 else 'were'} dropped: {reasons}"
    return f"{name}: {stay} examples stay; {went}"


def _enumerated(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _lopsided(a: str, b: str) -> bool:
    return max(len(a), len(b)) > 3 * min(len(a), len(b)) + 20


class DebianDescriptions(tfds.core.GeneratorBasedBuilder):
    """Package descriptions, and what is made of them: the configurations of kd_jax.sources.debian_texts."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.0.0": "First version.",
        "1.1.0": "english: whole descriptions, no longer paragraphs; index: questions about packages.",
    }
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=made.description) for name, made in CONFIGS.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("package", "source_package", "kind", *CONFIGS[self.builder_config.name].fields)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in names}),
            homepage="https://ddtp.debian.org",
        )

    def _split_generators(self, dl_manager):
        name = self.builder_config.name
        lists = fetch_lists(Path(self.data_dir).parents[2])
        splits, dropped = clean_splits(rows(lists, name), CONFIGS[name].fields)
        counts = {split: len(examples) for split, examples in splits.items()}
        progress.log(clean_sentence(f"debian_descriptions/{name}", counts, dropped))
        return {split: enumerate(examples) for split, examples in splits.items()}

    def _generate_examples(self):
        raise NotImplementedError  # the splits' generators are made above
