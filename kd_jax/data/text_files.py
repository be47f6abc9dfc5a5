"""Local text: JSON lines, and plain text with an example a line."""

import codecs
import json
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from kd_jax.errors import KdError

JSON_SUFFIXES = (".jsonl", ".json")
UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # Unicode's controls, marks such as U+200B, and blanks


def read_files(paths: Sequence[str], fields: Sequence[str], where: str) -> list[dict[str, str]]:
    """Examples of one JSON-lines file, or of one text file per field.

    One file is text only where there is one field and its name does not end in .jsonl or .json.

    Args:
      paths: one .jsonl, or as many text files as there are fields, in their order.
      fields: names of the fields that an example must have.
      where: names the paths' field in errors, such as "source.train".

    Raises:
      KdError: names the file, and the line where there is one.
    """
    if len(paths) == 1 and (len(fields) > 1 or paths[0].endswith(JSON_SUFFIXES)):
        lines = enumerate(read_lines(paths[0]), 1)
        return [_json_example(line, fields, f"{paths[0]}, line {number}") for number, line in lines]
    if len(paths) != len(fields):
        raise KdError(
            f"{where}: {len(paths)} files for the fields {', '.join(fields)}; wanted one .jsonl or one for each"
        )
    sides = [read_lines(path) for path in paths]
    if len({len(side) for side in sides}) > 1:
        counts = ", ".join(f"{len(side)} in {path}" for path, side in zip(paths, sides, strict=True))
        raise KdError(f"{where}: lines: {counts}; line n of one must be line n of the other")
    for path, side in zip(paths, sides, strict=True):
        for number, text in enumerate(side, 1):
            _check_text(text, f"{path}, line {number}")
    return [dict(zip(fields, row, strict=True)) for row in zip(*sides, strict=True)]


def existing(path: str) -> Path:
    """The file's path.

    Raises:
      KdError: if there is none.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise KdError(f"{path}: no such file; wanted a UTF-8 text file or .jsonl")
    return file


def read_lines(path: str) -> list[str]:
    r"""The lines of a UTF-8 text file, without a byte order mark.

    A line ends with "\n" or "\r\n", and the last one without; all other separators (U+2028, U+0085, form
    feed) are characters of the text, which `str.splitlines` would cut at.

    Examples:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "text")
      >>> path.write_bytes("one\r\ntwo\u2028still two".encode("utf-8-sig"))
      23
      >>> read_lines(str(path))
      ['one', 'two\u2028still two']

    Raises:
      KdError: if the file is missing or empty, or a line is not UTF-8.
    """
    content = existing(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    if not content:
        raise KdError(f"{path}: empty; wanted an example a line")
    lines = content.removesuffix(b"\n").split(b"\n")
    return list(_decoded(lines, path))


def _decoded(lines: Sequence[bytes], path: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            raise KdError(
                f"{path}, line {number}: not UTF-8 (byte {error.start + 1}); convert it with iconv"
            ) from error


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
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise KdError(f"{where}: half a character (a lone surrogate); wanted text that UTF-8 can hold")
