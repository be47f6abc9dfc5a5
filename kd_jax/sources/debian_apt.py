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
REMEDY = "Use the source Files or Tfds instead."


def fetch_lists(folder: Path) -> Path:
    """Return folder/apt with apt's index and translations, fetched if necessary; one process at a time fetches."""
    lists, temporary = folder / "apt", folder / "apt.part"
    with file_lock(folder / ".apt.lock", "apt's lists"):
        if lists.exists():
            return lists
        if shutil.which("apt-get") is None:
            raise KdError(f"source: expected apt-get on this machine for Debian, got none. {REMEDY}")
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
        args = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        result = subprocess.run(["apt-get", *args, "-q", "update"], capture_output=True, text=True, check=False)
        if not list((temporary / "lists").glob("*_Translation-fr*")):
            reason = (result.stderr.strip() or "none").splitlines()[-1]
            raise KdError(f"source: expected translations from apt-get, got: {reason}. Check the network. {REMEDY}")
        os.replace(temporary, lists)
    return lists


def read_index(folder: Path, pattern: str) -> Iterator[dict[str, list[str]]]:
    """Yield the RFC-822 stanzas of all index files that match a pattern.

    A stanza is a map from field to its first line and its continuation lines, without their leading space.
    """
    for path in sorted((folder / "lists").glob(pattern)):
        for block in re.split(r"\n{2,}", read_file(path).strip("\n")):
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


def read_file(path: Path) -> str:
    """Return an index file's text; apt decompresses it."""
    result = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], capture_output=True, check=True)
    return result.stdout.decode("utf-8")
