"""Lazy rows of local text files: JSON lines, or plain text with one example per line."""

import codecs
import dataclasses
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_jax.errors import KdError
from kd_jax.runtime import preemption
from kd_jax.sources.rows import Rows
from kd_jax.types import Example

JSON_SUFFIXES = (".jsonl", ".json")
INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # Unicode categories: controls, marks such as U+200B, and spaces
SURROGATES = re.compile("[\ud800-\udfff]")
NEWLINE, BLOCK = ord("\n"), 2**20  # bytes that are searched for newlines at a time


def read_files(paths: Sequence[str], fields: Sequence[str], where: str) -> Rows:
    """Return the examples of one JSON-lines file, or of one text file per field; lines are checked when read.

    A single file is plain text only if there is one field and its name does not end in .jsonl or .json. Error messages
    begin with the source's field `where`.
    """
    if len(paths) == 1 and (len(fields) > 1 or paths[0].endswith(JSON_SUFFIXES)):
        return JsonLines(Lines(paths[0]), tuple(fields))
    if len(paths) != len(fields):
        names = ", ".join(fields)
        raise KdError(
            f"{where}: expected one .jsonl, or a text file for each of the fields {names}, got {len(paths)} files. "
            "Name them in this order."
        )
    sides = [Lines(path) for path in paths]
    if len({len(side) for side in sides}) > 1:
        counts = ", ".join(f"{len(side)} in {path}" for path, side in zip(paths, sides, strict=True))
        raise KdError(f"{where}: expected as many lines in every file, got {counts}. Align them line by line.")
    return ParallelLines(tuple(sides), tuple(fields))


class Lines:
    r"""The lines of a UTF-8 text file by number, without a byte order mark; eight bytes of memory per line.

    A line ends with "\n" or "\r\n"; the last one may end without. All other separators (U+2028, U+0085, form feed) are
    characters of the text; `str.splitlines` would split there.

    Examples:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "text")
      >>> _ = path.write_bytes("one\r\ntwo\u2028still two".encode("utf-8-sig"))
      >>> lines = Lines(str(path))
      >>> len(lines), lines.read([1, 0])
      (2, ['two\u2028still two', 'one'])
    """

    def __init__(self, path: str):
        """Find the lines of a file; raise KdError if it is missing or empty."""
        self.path = path
        with open(require_file(path), "rb") as file:
            begin = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
            file.seek(begin)
            starts, end = [np.asarray([begin])], begin
            while block := file.read(BLOCK):
                starts.append(end + 1 + np.flatnonzero(np.frombuffer(block, np.uint8) == NEWLINE))
                end += len(block)
                preemption.poll()
        if end == begin:
            raise KdError(f"{path}: expected one example per line, got an empty file. Write the text to it.")
        self._starts = np.concatenate(starts)  # and the end of the last line
        if self._starts[-1] < end:
            self._starts = np.append(self._starts, end)

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self._starts) - 1

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """Return the lines with these numbers, from 0; raise KdError if one is not UTF-8."""
        numbers_N = np.asarray(numbers, int)
        starts, ends = self._starts[numbers_N].tolist(), self._starts[numbers_N + 1].tolist()
        texts = []
        with open(self.path, "rb") as file:
            for number, start, end in zip(numbers_N.tolist(), starts, ends, strict=True):
                file.seek(start)
                try:
                    texts.append(file.read(end - start).removesuffix(b"\n").decode().removesuffix("\r"))
                except UnicodeDecodeError as error:
                    raise KdError(
                        f"{self.path}, line {number + 1}: expected UTF-8, got another encoding at byte "
                        f"{error.start + 1}. Convert the file with iconv."
                    ) from error
        return texts


@dataclasses.dataclass(frozen=True, eq=False)
class JsonLines(Rows):
    """Examples with one JSON object per line, of which some fields are read."""

    lines: Lines
    fields: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.lines)

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """Return the examples with these numbers; raise KdError for an invalid line."""
        return [
            _parse_json(line, self.fields, f"{self.lines.path}, line {number + 1}")
            for number, line in zip(numbers_N.tolist(), self.lines.read(numbers_N), strict=True)
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class ParallelLines(Rows):
    """Examples of line n of one file (side) per field."""

    sides: tuple[Lines, ...]
    fields: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.sides[0])

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """Return the examples with these numbers; raise KdError for an empty line."""
        columns = [side.read(numbers_N) for side in self.sides]
        for side, texts in zip(self.sides, columns, strict=True):
            for number, text in zip(numbers_N.tolist(), texts, strict=True):
                _check_text(text, f"{side.path}, line {number + 1}")
        return [dict(zip(self.fields, row, strict=True)) for row in zip(*columns, strict=True)]


def require_file(path: str) -> Path:
    """Return the file's path; raise KdError if there is no file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise KdError(f"{path}: expected a UTF-8 text file or .jsonl, got no file. Correct the path.")
    return file


def is_blank(text: str) -> bool:
    r"""Return whether a text has no visible character, so that tokenizers give no token for it.

    Examples:
      >>> [is_blank(text) for text in ("", " \u2028\t", "\u200b\ufeff", "\x00", "a", ".")]
      [True, True, True, True, False, False]
    """
    return all(unicodedata.category(character) in INVISIBLE for character in text)


def _parse_json(line: str, fields: Sequence[str], where: str) -> Example:
    """Return the fields of a line's JSON object; raise KdError if it is invalid."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise KdError(f"{where}: expected a JSON object, got invalid JSON ({error.msg}). Correct the line.") from error
    names = ", ".join(fields)
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise KdError(f"{where}: expected an object with the fields {names}, got {kind}. Correct the line.")
    for field in fields:
        if field not in row:
            raise KdError(
                f"{where}: expected the fields {names}, got {', '.join(row)} without {field!r}. Add it, or rename the "
                "task's."
            )
        if not isinstance(row[field], str):
            kind = type(row[field]).__name__
            raise KdError(f"{where}: expected text in the field {field!r}, got {kind}. Convert it to a string.")
        _check_text(row[field], f"{where}, field {field!r}")
    return {field: row[field] for field in fields}


def _check_text(text: str, where: str) -> None:
    if is_blank(text):
        raise KdError(f"{where}: expected text, got an empty one. Fill it, or remove the example.")
    if SURROGATES.search(text):
        raise KdError(f"{where}: expected Unicode text, got half a character (a lone surrogate). Remove it.")
