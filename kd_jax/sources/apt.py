"""The package index and the description translations of this machine's Debian or Ubuntu mirror, by apt's own client.

They are fetched into a private folder, without root and without touching the system's lists.
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
OTHERWISE = "use the source Files (your own text) or Tfds (its catalogue) instead"


def fetch_lists(folder: Path) -> Path:
    """apt's index and translation files in folder/apt, fetched if they are not there yet, by one process at a time.

    Raises:
      KdError: if there is no apt, or its mirror cannot be reached.
    """
    lists = folder / "apt"
    with file_lock(folder / ".apt.lock", "apt's lists"):
        if not lists.exists():
            _fetch(lists)
    return lists


def _fetch(lists: Path) -> None:
    """Fetches beside, then renames."""
    beside = lists.with_name("apt.part")
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
    os.replace(beside, lists)


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
