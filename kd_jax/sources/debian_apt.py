"""Package index and translated descriptions of this machine's Debian or Ubuntu mirror, fetched with apt.

The files go into a private folder. This needs no root rights and does not touch the system's package lists.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kd_jax.errors import KdError
from kd_jax.runtime.file_lock import file_lock

LANGUAGES = ("en", "fr", "de")
ALTERNATIVES = "Use the source Files (your own text) or Tfds (its catalogue) instead."


def fetch_lists(folder: Path) -> Path:
    """Return folder/apt with apt's index and translations, fetched if necessary; one process at a time fetches.

    Raises:
      KdError: if there is no apt, or the mirror cannot be reached.
    """
    lists = folder / "apt"
    with file_lock(folder / ".apt.lock", "apt's lists"):
        if not lists.exists():
            _fetch(lists)
    return lists


def _fetch(lists: Path) -> None:
    """Fetch into a temporary folder, then rename it."""
    temporary = lists.with_name("apt.part")
    if shutil.which("apt-get") is None:
        raise KdError(f"source: expected apt-get on this machine for Debian, got none. {ALTERNATIVES}")
    shutil.rmtree(temporary, ignore_errors=True)
    for sub in ("lists/partial", "cache/archives/partial"):
        (temporary / sub).mkdir(parents=True)
    options = {
        "Dir::State::Lists": temporary / "lists",
        "Dir::Cache": temporary / "cache",
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
    translations = list((temporary / "lists").glob("*_Translation-fr*"))
    if result.returncode and not translations:
        reason = (result.stderr.strip() or "apt-get failed").splitlines()[-1]
        raise KdError(
            f"source: expected lists from apt-get update for Debian, got: {reason}. Check the network. {ALTERNATIVES}"
        )
    if not translations:
        raise KdError(f"source: expected translated descriptions from this machine's mirror, got none. {ALTERNATIVES}")
    os.replace(temporary, lists)


def read_index(folder: Path, pattern: str) -> Iterator[dict[str, list[str]]]:
    """Yield the stanzas (field -> lines) of all index files that match a pattern."""
    for path in sorted((folder / "lists").glob(pattern)):
        yield from parse_stanzas(read_file(path))


def read_file(path: Path) -> str:
    """Return an index file's text; apt decompresses it."""
    result = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], capture_output=True, check=True)
    return result.stdout.decode("utf-8")


def parse_stanzas(text: str) -> Iterator[dict[str, list[str]]]:
    """Yield RFC-822 stanzas: field -> its first line and its continuation lines, without their leading space."""
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
