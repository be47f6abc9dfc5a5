"""Examples made of Debian's package descriptions: one stream of them for each configuration, none cleaned away yet.

Descriptions are joined on Description-md5. Each example carries its source package, by which it falls into a split.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kd_jax.sources.apt import read_index

Row = dict[str, str]
Descriptions = Mapping[str, tuple[str, list[str]]]  # Description-md5 -> package, lines
Examples = Iterator[tuple[str, str, Row]]  # package, kind, texts


class Configuration(NamedTuple):
    """What examples are made of the descriptions.

    Attributes:
      description: in words.
      fields: of its texts; the first is the one that a model reads.
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
# What is asked for -> wordings of the question.
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


class Package(NamedTuple):
    """A binary package: the source package that builds it, and its section of the archive."""

    source: str
    section: str


def rows(folder: Path, config: str) -> Iterator[Row]:
    """All examples of a configuration, in the order of the index.

    Args:
      folder: as kd_jax.sources.apt.fetch_lists leaves it.
      config: of CONFIGS.
    """
    english, packages = descriptions(folder, "en"), index(folder)
    if config in ("en-fr", "en-de"):
        examples = translations(english, descriptions(folder, config[3:]), config[3:])
    elif config == "index":
        examples = questions({package: lines[0] for package, lines in english.values()}, packages)
    else:
        examples = {"summaries": summaries, "english": documents}[config](english)
    for package, kind, texts in examples:
        source = packages[package].source if package in packages else package
        yield {"package": package, "source_package": source, "kind": kind} | texts


def translations(english: Descriptions, other: Descriptions, language: str) -> Examples:
    """Synopses, and paragraphs where their numbers agree, in English and the other language."""
    for md5, (package, lines) in other.items():
        if md5 in english:
            for kind, ours, theirs in pairs(english[md5][1], lines):
                yield package, kind, {"en": ours, language: theirs}


def summaries(english: Descriptions) -> Examples:
    """A description's paragraphs, and its synopsis."""
    for package, lines in english.values():
        texts = [text for text in paragraphs(lines) if text]
        if texts:
            yield package, "summary", {"description": " ".join(texts), "synopsis": lines[0]}


def documents(english: Descriptions) -> Examples:
    """A description's paragraphs, a line each."""
    for package, lines in english.values():
        texts = [text for text in paragraphs(lines) if text]
        if texts:
            yield package, "document", {"text": "\n".join(texts)}


def questions(synopses: Mapping[str, str], packages: Mapping[str, Package]) -> Examples:
    """One question about each package, so that as many ask for each kind of answer; its name's hash words it.

    A package is not asked for by a synopsis that it shares with another.

    Args:
      synopses: package -> its description in a line.
      packages: as `index` returns them.

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
        kind, wording = divmod(_place(package, 9), 3)
        asked_for = tuple(QUESTIONS)[kind]
        section = packages[package].section if package in packages else ""
        answer = {"synopsis": synopsis, "package": package, "section": section}[asked_for]
        if answer and not (asked_for == "package" and owners[synopsis] > 1):
            question = QUESTIONS[asked_for][wording].format(package=package, synopsis=synopsis)
            yield package, asked_for, {"prompt": question, "response": answer}


def pairs(english: list[str], other: list[str]) -> Iterator[tuple[str, str, str]]:
    """(kind, English, other) of one description: the synopsis, and paragraphs where their numbers agree."""
    yield "synopsis", english[0], other[0]
    ours, theirs = paragraphs(english), paragraphs(other)
    if len(ours) == len(theirs):
        yield from (("paragraph", a, b) for a, b in zip(ours, theirs, strict=True) if a and b)


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


def descriptions(folder: Path, language: str) -> Descriptions:
    """Description-md5 -> (package, the description's lines)."""
    texts = {}
    for stanza in read_index(folder, f"*_Translation-{language}*"):
        if f"Description-{language}" in stanza:
            texts[stanza["Description-md5"][0]] = (stanza["Package"][0], stanza[f"Description-{language}"])
    return texts


def index(folder: Path) -> dict[str, Package]:
    """Binary package -> what the index says of it; a package without a field Source is built by its namesake."""
    packages = {}
    for stanza in read_index(folder, "*_Packages*"):
        (name,) = stanza["Package"]
        source = stanza["Source"][0].split()[0] if "Source" in stanza else name
        packages[name] = Package(source, stanza["Section"][0] if "Section" in stanza else "")
    return packages


def split_of(source_package: str) -> str:
    """5% of the source packages for test, 3% for validation, by name alone."""
    place = _place(source_package, 100)
    return "test" if place < 5 else "validation" if place < 8 else "train"


def _place(name: str, places: int) -> int:
    """One of that many places, by name alone."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) % places
