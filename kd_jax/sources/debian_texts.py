"""Examples made from Debian's package descriptions, for each configuration, before any is dropped.

Translations are joined on Description-md5. An example's source package decides its split.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kd_jax.sources.debian_apt import read_index

Row = dict[str, str]
Descriptions = Mapping[str, tuple[str, list[str]]]  # Description-md5 -> package, and synopsis with the further lines


class Package(NamedTuple):
    """A binary package: the source package that builds it, and its section of the archive."""

    source: str
    section: str


class Configuration(NamedTuple):
    """One dataset made from the descriptions: fields of its texts (a model reads the first), kinds of its examples."""

    description: str
    fields: tuple[str, ...]
    kinds: tuple[str, ...]


PAIR_KINDS = ("synopsis", "paragraph")
CONFIGS = {
    "en-fr": Configuration("English and French, synopses and paragraphs", ("en", "fr"), PAIR_KINDS),
    "en-de": Configuration("English and German, synopses and paragraphs", ("en", "de"), PAIR_KINDS),
    "summaries": Configuration(
        "English description and its one-line synopsis", ("description", "synopsis"), ("summary",)
    ),
    "english": Configuration("Long descriptions in English", ("text",), ("document",)),
    "index": Configuration(
        "Questions about packages: their synopsis, name or section",
        ("prompt", "response"),
        ("synopsis", "package", "section"),
    ),
}
# Kind of answer -> wordings of the question.
QUESTIONS = {
    "synopsis": (
        "What is the Debian package {package}?",
        "Describe the Debian package {package} in one line.",
        "What does the package {package} of Debian contain?",
    ),
    "package": (
        "Which Debian package is this: {synopsis}",
        "What is the Debian package called that is described as: {synopsis}",
        "Name the Debian package of this description: {synopsis}",
    ),
    "section": (
        "In which section of Debian is the package {package}?",
        "To which section of Debian does the package {package} belong?",
        "Name the section of Debian that has the package {package}.",
    ),
}


def generate_rows(folder: Path, config: str) -> Iterator[Row]:
    """Yield all examples of a configuration of CONFIGS, in the order of the index in apt's folder."""
    english, packages = read_descriptions(folder, "en"), read_packages(folder)
    if config in ("en-fr", "en-de"):
        rows = translations(english, read_descriptions(folder, config[3:]), config[3:])
    elif config == "index":
        rows = questions({package: lines[0] for package, lines in english.values()}, packages)
    else:
        rows = {"summaries": summaries, "english": documents}[config](english)
    for row in rows:
        package = row["package"]
        yield row | {"source_package": packages[package].source if package in packages else package}


def translations(english: Descriptions, other: Descriptions, language: str) -> Iterator[Row]:
    """Yield synopses, and paragraphs if both descriptions have the same number, in English and another language."""
    for md5, (package, lines) in other.items():
        if md5 not in english:
            continue
        english_lines = english[md5][1]
        yield {"package": package, "kind": "synopsis", "en": english_lines[0], language: lines[0]}
        sources, targets = split_paragraphs(english_lines), split_paragraphs(lines)
        if len(sources) == len(targets):
            for source, target in zip(sources, targets, strict=True):
                if source and target:
                    yield {"package": package, "kind": "paragraph", "en": source, language: target}


def summaries(english: Descriptions) -> Iterator[Row]:
    """Yield descriptions (their paragraphs) with their synopses."""
    for package, lines in english.values():
        if text := " ".join(filter(None, split_paragraphs(lines))):
            yield {"package": package, "kind": "summary", "description": text, "synopsis": lines[0]}


def documents(english: Descriptions) -> Iterator[Row]:
    """Yield descriptions with one paragraph per line."""
    for package, lines in english.values():
        if text := "\n".join(filter(None, split_paragraphs(lines))):
            yield {"package": package, "kind": "document", "text": text}


def questions(synopses: Mapping[str, str], packages: Mapping[str, Package]) -> Iterator[Row]:
    """Yield one question per package of `synopses`; a hash of its name chooses the kind of answer and the wording.

    A question by synopsis is left out if two packages share the synopsis.

    Examples:
      >>> list(questions({"tree": "displays an indented directory tree"}, {}))  # doctest: +NORMALIZE_WHITESPACE
      [{'package': 'tree', 'kind': 'synopsis', 'prompt': 'What does the package tree of Debian contain?',
        'response': 'displays an indented directory tree'}]
    """
    owners = Counter(synopses.values())
    for package, synopsis in synopses.items():
        kind_index, wording = divmod(_hash_to_index(package, 9), 3)
        kind = tuple(QUESTIONS)[kind_index]
        section = packages[package].section if package in packages else ""
        answer = {"synopsis": synopsis, "package": package, "section": section}[kind]
        if answer and not (kind == "package" and owners[synopsis] > 1):
            question = QUESTIONS[kind][wording].format(package=package, synopsis=synopsis)
            yield {"package": package, "kind": kind, "prompt": question, "response": answer}


def split_paragraphs(description: list[str]) -> list[str]:
    """Return the paragraphs of a description, one line each; "" for a list or verbatim lines.

    A line with a single dot separates paragraphs; further indented lines are verbatim.
    """
    blocks: list[list[str]] = [[]]
    for line in description[1:]:
        if line.strip() == ".":
            blocks.append([])
        else:
            blocks[-1].append(line)
    is_list = re.compile(r"\s|[-*+•]\s").match
    return ["" if any(map(is_list, block)) else " ".join(block).strip() for block in blocks]


def read_descriptions(folder: Path, language: str) -> Descriptions:
    """Return Description-md5 -> package and description."""
    stanzas, field = read_index(folder, f"*_Translation-{language}*"), f"Description-{language}"
    return {s["Description-md5"][0]: (s["Package"][0], s[field]) for s in stanzas if field in s}


def read_packages(folder: Path) -> dict[str, Package]:
    """Return binary package -> its source package and section; a package without a field Source is its own source."""
    packages = {}
    for stanza in read_index(folder, "*_Packages*"):
        (name,) = stanza["Package"]
        packages[name] = Package(stanza.get("Source", [name])[0].split()[0], stanza.get("Section", [""])[0])
    return packages


def assign_split(source_package: str) -> str:
    """Return the split of a source package: 5% test and 3% validation, by a hash of the name."""
    percent = _hash_to_index(source_package, 100)
    return "test" if percent < 5 else "validation" if percent < 8 else "train"


def _hash_to_index(name: str, count: int) -> int:
    """Return a number below `count` that depends on the name only."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) % count
