"""Local text, read by the number of a line: JSON lines, and plain text with an example a line."""

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

JSON_SUFFIXES = (".jsonl", ".json")
UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # Unicode's controls, marks such as U+200B, and blanks
SURROGATES = re.compile("[\ud800-\udfff]")
NEWLINE, BLOCK = ord("\n"), 2**20  # bytes of a file that are looked through at a time


def read_files(paths: Sequence[str], fields: Sequence[str], where: str) -> Rows:
    """Examples of one JSON-lines file, or of one text file per field; a line is checked when it is read.

    One file is text only where there is one field and its name does not end in .jsonl or .json.

    Args:
      paths: one .jsonl, or as many text files as there are fields, in their order.
      fields: names of the fields that an example must have.
      where: names the paths' field in errors, such as "source.train".

    Raises:
      KdError: names the file, and (from the examples) the line where there is one.
    """
    if len(paths) == 1 and (len(fields) > 1 or paths[0].endswith(JSON_SUFFIXES)):
        return JsonLines(Lines(paths[0]), tuple(fields))
    if len(paths) != len(fields):
        raise KdError(
            f"{where}: {len(paths)} files for the fields {', '.join(fields)}; wanted one .jsonl or one for each"
        )
    sides = [Lines(path) for path in paths]
    if len({len(side) for side in sides}) > 1:
        counts = ", ".join(f"{len(side)} in {path}" for path, side in zip(paths, sides, strict=True))
        raise KdError(f"{where}: lines: {counts}; line n of one must be line n of the other")
    return SideBySide(tuple(sides), tuple(fields))


class Lines:
    r"""The lines of a UTF-8 text file by number, without a byte order mark; eight bytes a line are kept.

    A line ends with "\n" or "\r\n", and the last one without; all other separators (U+2028, U+0085, form
    feed) are characters of the text, which `str.splitlines` would cut at.

    Examples:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "text")
      >>> path.write_bytes("one\r\ntwo\u2028still two".encode("utf-8-sig"))
      23
      >>> lines = Lines(str(path))
      >>> len(lines), lines.read([1, 0])
      (2, ['two\u2028still two', 'one'])
    """

    def __init__(self, path: str):
        """Raises KdError if the file is missing or empty."""
        self.path = path
        with open(existing(path), "rb") as file:
            begin = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
            file.seek(begin)
            starts, end = [np.asarray([begin])], begin
            while block := file.read(BLOCK):
                starts.append(end + 1 + np.flatnonzero(np.frombuffer(block, np.uint8) == NEWLINE))
                end += len(block)
                preemption.poll()
        if end == begin:
            raise KdError(f"{path}: empty; wanted an example a line")
        self._starts = np.concatenate(starts)  # and the end of the last
        if self._starts[-1] < end:
            self._starts = np.append(self._starts, end)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """The lines of these numbers, from 0; raises KdError if one is not UTF-8."""
        numbers = np.asarray(numbers, int)
        starts, ends = self._starts[numbers].tolist(), self._starts[numbers + 1].tolist()
        texts = []
        with open(self.path, "rb") as file:
            for number, start, end in zip(numbers.tolist(), starts, ends, strict=True):
                file.seek(start)
                texts.append(self._decoded(file.read(end - start), number))
        return texts

    def _decoded(self, line: bytes, number: int) -> str:
        try:
            return line.removesuffix(b"\n").decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            raise KdError(
                f"{self.path}, line {number + 1}: not UTF-8 (byte {error.start + 1}); convert it with iconv"
            ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class JsonLines(Rows):
    """The fields of an object a line."""

    lines: Lines
    fields: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, numbers_N: np.ndarray) -> list[dict[str, str]]:
        """As Rows.read; raises KdError for a line that is no such object."""
        return [
            _json_example(line, self.fields, f"{self.lines.path}, line {number + 1}")
            for number, line in zip(numbers_N.tolist(), self.lines.read(numbers_N), strict=True)
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class SideBySide(Rows):
    """Line n of one file for each field."""

    sides: tuple[Lines, ...]
    fields: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sides[0])

    def read(self, numbers_N: np.ndarray) -> list[dict[str, str]]:
        """As Rows.read; raises KdError for an empty line."""
        texts = [side.read(numbers_N) for side in self.sides]
        for side, column in zip(self.sides, texts, strict=True):
            for number, text in zip(numbers_N.tolist(), column, strict=True):
                _check_text(text, f"{side.path}, line {number + 1}")
        return [dict(zip(self.fields, row, strict=True)) for row in zip(*texts, strict=True)]


def existing(path: str) -> Path:
    """The file's path.

    Raises:
      KdError: if there is none.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise KdError(f"{path}: no such file; wanted a UTF-8 text file or .jsonl")
    return file


def _json_example(line: str, fields: Sequence[str], where: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise KdError(f"{where}: not JSON ({error.msg}); wanted one object a line") from error
    if not isinstance(row, dict):
        raise KdError(f"{where}: {type(row).__name__}; wanted an object with the fields {', '.join(fields)}")
    for field in fields:
        if field not in row:
            raise KdError(f"{where}: no field {field!r}; it has {', '.join(row)}, wanted {', '.join(fields)}")
        if not isinstance(row[field], str):
            raise KdError(f"{where}: the field {field!r} is {type(row[field]).__name__}; wanted a text")
        _check_text(row[field], f"{where}, field {field!r}")
    return {field: row[field] for field in fields}


def is_blank(text: str) -> bool:
    r"""Whether no character of a text can be seen, so that no tokeniser makes a token of it.

    Examples:
      >>> [is_blank(text) for text in ("", " \u2028\t", "\u200b\ufeff", "\x00", "a", ".")]
      [True, True, True, True, False, False]
    """
    return all(unicodedata.category(character) in UNSEEN for character in text)


def _check_text(text: str, where: str) -> None:
    if is_blank(text):
        raise KdError(f"{where}: empty; wanted a text, or leave the example out")
    if SURROGATES.search(text):
        raise KdError(f"{where}: half a character (a lone surrogate); wanted text that UTF-8 can hold")
