"""TFDS builder of package descriptions and their translations, from this machine's Debian or Ubuntu mirror.

apt's own client fetches the package index and the description translations into a private folder,
without root and without touching the system's lists. Descriptions are joined on Description-md5; a
source package, with all that it builds, falls into one split, so that near-twins do not cross.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from kd_jax.artifacts import runlog
from kd_jax.errors import KdError

LANGUAGES = ("en", "fr", "de")
CONFIGS = {
    "en-fr": "English and French, synopses and paragraphs",
    "en-de": "English and German, synopses and paragraphs",
    "summaries": "English description and its one-line synopsis",
    "english": "English paragraphs",
}
OTHERWISE = "use the source Files (your own text) or Tfds (its catalogue) instead"


def fetch_lists(folder: Path) -> Path:
    """apt's index and translation files in folder/apt, fetched if they are not there yet.

    Raises:
      KdError: if there is no apt, or its mirror cannot be reached.
    """
    done, beside = folder / "apt", folder / "apt.part"
    if done.exists():
        return done
    if shutil.which("apt-get") is None:
        raise KdError(f"source Debian: there is no apt-get on this machine; {OTHERWISE}")
    shutil.rmtree(beside, ignore_errors=True)
    for sub in ("lists/partial", "cache/archives/partial"):
        (beside / sub).mkdir(parents=True)
    options = {
        "Dir::State::Lists": beside / "lists",
        "Dir::Cache": beside / "cache",
        "Acquire::Languages": ",".join(LANGUAGES),
        "Acquire::GzipIndexes": "false",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "true",
        "APT::Update::Error-Mode": "any",
    }
    command = [
        "apt-get",
        *(part for key, value in options.items() for part in ("-o", f"{key}={value}")),
        "-q",
        "update",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    translations = list((beside / "lists").glob("*_Translation-fr*"))
    if result.returncode and not translations:
        reason = (result.stderr.strip() or "apt-get failed").splitlines()[-1]
        raise KdError(f"source Debian: apt-get update: {reason}; check the network, or {OTHERWISE}")
    if not translations:
        raise KdError(f"source Debian: this machine's mirror offers no translated descriptions; {OTHERWISE}")
    os.replace(beside, done)
    return done


def read_index(folder: Path, pattern: str) -> Iterator[dict[str, list[str]]]:
    """Stanzas of all index files that match: field -> its lines."""
    for path in sorted((folder / "lists").glob(pattern)):
        yield from stanzas(read_file(path))


def read_file(path: Path) -> str:
    """An index file's text, whatever compression apt keeps it in."""
    result = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], capture_output=True, check=True)
    return result.stdout.decode("utf-8")


def stanzas(text: str) -> Iterator[dict[str, list[str]]]:
    """RFC-822 stanzas: field -> its first line and the continuation lines, without their leading blank."""
    for block in re.split(r"\n{2,}", text.strip("\n")):
        fields: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in block.split("\n"):
            if line[:1].isspace():
                lines.append(line[1:])
            elif ":" in line:
                name, value = line.split(":", 1)
                lines = fields[name] = [value.strip()]
        if fields:
            yield fields


def paragraphs(description: list[str]) -> list[str]:
    """The long description's paragraphs, each on one line; "" for one that holds a list or set lines.

    In a description a line with a dot alone parts paragraphs, and further indented lines are verbatim.
    """
    blocks: list[list[str]] = [[]]
    for line in description[1:]:
        if line.strip() == ".":
            blocks.append([])
        else:
            blocks[-1].append(line)
    return [
        "" if any(re.match(r"\s|[-*+•]\s", line) for line in block) else " ".join(block).strip() for block in blocks
    ]


def descriptions(folder: Path, language: str) -> dict[str, tuple[str, list[str]]]:
    """Description-md5 -> (package, the description's lines)."""
    texts = {}
    for stanza in read_index(folder, f"*_Translation-{language}*"):
        if f"Description-{language}" in stanza:
            texts[stanza["Description-md5"][0]] = (stanza["Package"][0], stanza[f"Description-{language}"])
    return texts


def sources(folder: Path) -> dict[str, str]:
    """Binary package -> the source package that builds it."""
    return {
        stanza["Package"][0]: stanza["Source"][0].split()[0]
        for stanza in read_index(folder, "*_Packages*")
        if "Source" in stanza
    }


def pairs(english: list[str], other: list[str]) -> Iterator[tuple[str, str, str]]:
    """(kind, English, other) of one description: the synopsis, and paragraphs where their numbers agree."""
    yield "synopsis", english[0], other[0]
    ours, theirs = paragraphs(english), paragraphs(other)
    if len(ours) == len(theirs):
        yield from (("paragraph", a, b) for a, b in zip(ours, theirs, strict=True) if a and b)


def rows(folder: Path, config: str) -> Iterator[dict[str, str]]:
    """All examples of a configuration, in the order of the index; nothing dropped yet."""
    english, source = descriptions(folder, "en"), sources(folder)

    def row(package: str, **fields: str) -> dict[str, str]:
        return {"package": package, "source_package": source[package] if package in source else package} | fields

    if config in ("en-fr", "en-de"):
        language = config[3:]
        for md5, (package, other) in descriptions(folder, language).items():
            if md5 in english:
                for kind, ours, theirs in pairs(english[md5][1], other):
                    yield row(package, kind=kind, en=ours, **{language: theirs})
    else:
        for package, lines in english.values():
            texts = [text for text in paragraphs(lines) if text]
            if config == "summaries" and texts:
                yield row(package, kind="summary", description=" ".join(texts), synopsis=lines[0])
            elif config == "english":
                yield from (row(package, kind="paragraph", text=text) for text in texts)


def split_of(source_package: str) -> str:
    """5% of the source packages for test, 3% for validation, by name alone."""
    place = int.from_bytes(hashlib.blake2b(source_package.encode(), digest_size=4).digest()) % 100
    return "test" if place < 5 else "validation" if place < 8 else "train"


def clean_splits(examples: Iterator[dict[str, str]], fields: tuple[str, ...]) -> tuple[dict[str, list], Counter]:
    """(split -> examples, why others were dropped -> how many).

    Dropped: untranslated or empty ones, sides of very different length, repetitions, and held-out
    examples whose first field is trained on.
    """
    splits: dict[str, list] = {"train": [], "validation": [], "test": []}
    seen, dropped = set(), Counter()
    for example in examples:
        texts = tuple(example[field] for field in fields)
        if not all(texts) or len(set(texts)) < len(texts):
            dropped["untranslated"] += 1
        elif len(texts) > 1 and "kind" in example and example["kind"] != "summary" and _lopsided(*texts):
            dropped["lopsided"] += 1
        elif texts in seen:
            dropped["repeated"] += 1
        else:
            seen.add(texts)
            splits[split_of(example["source_package"])].append(example)
    trained: set[str] = set()
    for split in ("train", "validation", "test"):
        examples = splits[split]
        if split != "train":
            splits[split] = [example for example in examples if example[fields[0]].casefold() not in trained]
        dropped["seen in an earlier split"] += len(examples) - len(splits[split])
        trained |= {example[fields[0]].casefold() for example in examples}
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
    """Package descriptions: en-fr, en-de, summaries and english."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, description=text) for name, text in CONFIGS.items()]

    def _fields(self) -> tuple[str, ...]:
        """The text fields; the first is the one that a model reads."""
        name = self.builder_config.name
        return (
            {"summaries": ("description", "synopsis"), "english": ("text",)}[name]
            if "-" not in name
            else tuple(name.split("-"))
        )

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("package", "source_package", "kind", *self._fields())
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in names}),
            homepage="https://ddtp.debian.org",
        )

    def _split_generators(self, dl_manager):
        lists = fetch_lists(Path(self.data_dir).parents[2])
        splits, dropped = clean_splits(rows(lists, self.builder_config.name), self._fields())
        counts = {split: len(examples) for split, examples in splits.items()}
        runlog.say(clean_sentence(f"debian_descriptions/{self.builder_config.name}", counts, dropped))
        return {split: enumerate(examples) for split, examples in splits.items()}

    def _generate_examples(self):
        raise NotImplementedError  # the splits' generators are made above
