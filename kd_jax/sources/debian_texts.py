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


class Description(NamedTuple):
    """The description of a binary package: its synopsis, then its lines."""

    package: str
    lines: list[str]


class TextExample(NamedTuple):
    """Field -> text, with the package and the kind of example."""

    package: str
    kind: str
    texts: Row


class Package(NamedTuple):
    """A binary package: the source package that builds it, and its section of the archive."""

    source: str
    section: str


Descriptions = Mapping[str, Description]  # Description-md5 -> description


class Configuration(NamedTuple):
    """One kind of dataset made from the descriptions.

    Attributes:
      description: of the dataset.
      fields: of its texts; a model reads the first.
      kinds: of its examples.
    """

    description: str
    fields: tuple[str, ...]
    kinds: tuple[str, ...]


CONFIGS = {
    "en-fr": Configuration("English and French, synopses and paragraphs", ("en", "fr"), ("synopsis", "paragraph")),
    "en-de": Configuration("English and German, synopses and paragraphs", ("en", "de"), ("synopsis", "paragraph")),
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
    """Yield all examples of a configuration, in the order of the index.

    Args:
      folder: that kd_jax.sources.debian_apt.fetch_lists returns.
      config: one of CONFIGS.
    """
    english, packages = read_descriptions(folder, "en"), read_packages(folder)
    if config in ("en-fr", "en-de"):
        examples = translations(english, read_descriptions(folder, config[3:]), config[3:])
    elif config == "index":
        examples = questions({package: lines[0] for package, lines in english.values()}, packages)
    else:
        examples = {"summaries": summaries, "english": documents}[config](english)
    for package, kind, texts in examples:
        source = packages[package].source if package in packages else package
        yield {"package": package, "source_package": source, "kind": kind} | texts


def translations(english: Descriptions, other: Descriptions, language: str) -> Iterator[TextExample]:
    """Yield synopses, and paragraphs if both descriptions have the same number, in English and another language."""
    for md5, (package, lines) in other.items():
        if md5 in english:
            for kind, source, target in _text_pairs(english[md5].lines, lines):
                yield TextExample(package, kind, {"en": source, language: target})


def summaries(english: Descriptions) -> Iterator[TextExample]:
    """Yield descriptions (their paragraphs) with their synopses."""
    for package, lines in english.values():
        texts = [text for text in split_paragraphs(lines) if text]
        if texts:
            yield TextExample(package, "summary", {"description": " ".join(texts), "synopsis": lines[0]})


def documents(english: Descriptions) -> Iterator[TextExample]:
    """Yield descriptions with one paragraph per line."""
    for package, lines in english.values():
        texts = [text for text in split_paragraphs(lines) if text]
        if texts:
            yield TextExample(package, "document", {"text": "\n".join(texts)})


def questions(synopses: Mapping[str, str], packages: Mapping[str, Package]) -> Iterator[TextExample]:
    """Yield one question per package; a hash of its name chooses the kind of answer and the wording.

    A question by synopsis is left out if two packages share the synopsis.

    Args:
      synopses: package -> one-line description.
      packages: as `read_packages` returns them.

    Examples:
      >>> synopses = {"tree": "displays an indented directory tree", "sl": "Correct you if you type `sl`"}
      >>> for package, kind, texts in questions(synopses, {}):
      ...     print(kind, texts)
      synopsis {'prompt': 'What does the package tree of Debian contain?', \
'response': 'displays an indented directory tree'}
      package {'prompt': 'Which Debian package is this: Correct you if you type `sl`', 'response': 'sl'}
    """
    owners = Counter(synopses.values())
    for package, synopsis in synopses.items():
        kind_index, wording = divmod(_hash_to_index(package, 9), 3)
        kind = tuple(QUESTIONS)[kind_index]
        section = packages[package].section if package in packages else ""
        answer = {"synopsis": synopsis, "package": package, "section": section}[kind]
        if answer and not (kind == "package" and owners[synopsis] > 1):
            question = QUESTIONS[kind][wording].format(package=package, synopsis=synopsis)
            yield TextExample(package, kind, {"prompt": question, "response": answer})


def _text_pairs(english: list[str], other: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, English, other) of one description."""
    yield "synopsis", english[0], other[0]
    sources, targets = split_paragraphs(english), split_paragraphs(other)
    if len(sources) == len(targets):
        yield from (("paragraph", a, b) for a, b in zip(sources, targets, strict=True) if a and b)


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
    return [
        "" if any(re.match(r"\s|[-*+•]\s", line) for line in block) else " ".join(block).strip() for block in blocks
    ]


def read_descriptions(folder: Path, language: str) -> Descriptions:
    """Return Description-md5 -> description."""
    texts = {}
    for stanza in read_index(folder, f"*_Translation-{language}*"):
        if f"Description-{language}" in stanza:
            texts[stanza["Description-md5"][0]] = Description(stanza["Package"][0], stanza[f"Description-{language}"])
    return texts


def read_packages(folder: Path) -> dict[str, Package]:
    """Return binary package -> its source package and section; a package without a field Source is its own source."""
    packages = {}
    for stanza in read_index(folder, "*_Packages*"):
        (name,) = stanza["Package"]
        source = stanza["Source"][0].split()[0] if "Source" in stanza else name
        packages[name] = Package(source, stanza.get("Section", [""])[0])
    return packages


def assign_split(source_package: str) -> str:
    """Return the split of a source package: 5% test and 3% validation, by a hash of the name."""
    percent = _hash_to_index(source_package, 100)
    return "test" if percent < 5 else "validation" if percent < 8 else "train"


def _hash_to_index(name: str, count: int) -> int:
    """Return a number below `count` that depends on the name only."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) % count
