"""Lazy rows of local text files: JSON lines, or plain text with one example per line."""

import codecs
import dataclasses
import glob
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.errors import KdError
from kd_jax.runtime import preemption
from kd_jax.sources.rows import ConcatenatedRows, Rows
from kd_jax.types import Example

JSON_SUFFIXES = (".jsonl", ".json")
MAX_LINE = 2**24  # bytes; no document is as long, and every step of `prepare` takes a few seconds for it at most
TO_JSON = "python -c 'import json, sys; {} [print(json.dumps(row)) for row in rows]' {{path}} > {{path}}.jsonl"
PARQUET = TO_JSON.format("import pyarrow.parquet as p; rows = p.read_table(sys.argv[1]).to_pylist();")
# First bytes of a file, or the suffix of its name -> what it is, and the command that makes text of it.
FORMATS: dict[bytes | str, tuple[str, str]] = {
    b"\x1f\x8b": ("gzip", "gunzip -k {path}"),
    b"BZh": ("bzip2", "bunzip2 -k {path}"),
    b"\xfd7zXZ\x00": ("xz", "xz -dk {path}"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "zstd -dk {path}"),
    b"PK\x03\x04": ("a zip archive", "unzip {path}"),
    b"PAR1": ("Parquet", PARQUET),
    b"ARROW1": ("Arrow", TO_JSON.format("import pyarrow.feather as f; rows = f.read_table(sys.argv[1]).to_pylist();")),
    b"%PDF-": ("PDF", "pdftotext {path}"),
    b"SQLite format 3\x00": ("an SQLite database", "sqlite3 -json {path} 'SELECT ...' | jq -c '.[]' > {path}.jsonl"),
    b"\xff\xfe\x00\x00": ("UTF-32", "iconv -f UTF-32 -t UTF-8 {path} > {path}.utf8"),
    b"\xff\xfe": ("UTF-16", "iconv -f UTF-16 -t UTF-8 {path} > {path}.utf8"),
    b"\xfe\xff": ("UTF-16", "iconv -f UTF-16 -t UTF-8 {path} > {path}.utf8"),
    ".csv": (
        "comma-separated values",
        TO_JSON.format("import csv; rows = csv.DictReader(open(sys.argv[1]));"),
    ),
    ".tsv": ("tab-separated values", "cut -f1 {path} > {path}.1; cut -f2 {path} > {path}.2"),
}
INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # Unicode categories: controls, marks such as U+200B, and spaces
SURROGATES = re.compile("[\ud800-\udfff]")
MESSAGES = "messages"  # the field of a chat
NEWLINE, BLOCK = ord("\n"), 2**20  # bytes that are searched for newlines at a time


def read_files(paths: Sequence[str], fields: Sequence[str], where: str) -> Rows:
    """Return the examples of JSON-lines files, or of one text file per field; lines are checked when read.

    A path may be a pattern of file names, such as "part-*.jsonl". A single path is of plain text only if there is one
    field and it does not end in .jsonl or .json. Error messages begin with the source's field `where`.
    """
    json_paths = [path for path in paths if path.endswith(JSON_SUFFIXES)]
    if len(json_paths) == len(paths) or (len(paths) == 1 and len(fields) > 1):
        files = [file for path in paths for file in expand(path)]
        return concatenate([JsonLines(Lines(file), tuple(fields)) for file in files])
    if len(paths) != len(fields) or json_paths:
        names = ", ".join(fields)
        raise KdError(
            f"{where}: expected .jsonl files, or a text file for each of the fields {names}, got {len(paths)} files"
            + (f", {len(json_paths)} of them JSON lines. Use either." if json_paths else ". Name them in this order.")
        )
    columns = [expand(path) for path in paths]
    if len({len(column) for column in columns}) > 1:
        counts = ", ".join(f"{len(column)} of {path}" for path, column in zip(paths, columns, strict=True))
        raise KdError(f"{where}: expected as many files for every field, got {counts}. Add the missing ones.")
    parts = []
    for files in zip(*columns, strict=True):
        sides = tuple(map(Lines, files))
        if len({len(side) for side in sides}) > 1:
            counts = ", ".join(f"{len(side)} in {side.path}" for side in sides)
            raise KdError(f"{where}: expected as many lines in every file, got {counts}. Align them line by line.")
        parts.append(ParallelLines(sides, tuple(fields)))
    return concatenate(parts)


def expand(path: str) -> list[str]:
    """Return the files that a path or a pattern such as "part-*.jsonl" names, in the order of their names."""
    if not glob.has_magic(path) or Path(path).expanduser().exists():
        return [path]
    files = sorted(glob.glob(str(Path(path).expanduser())))
    if not files:
        raise KdError(f"{path}: expected a pattern that names files, got no file. Correct the pattern.")
    return files


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Return the examples of all parts."""
    return parts[0] if len(parts) == 1 else ConcatenatedRows(*parts)


class Lines:
    r"""The lines of a UTF-8 text file by number, without a byte order mark; eight bytes of memory per line.

    A line ends with "\n" or "\r\n"; the last one may end without. All other separators (U+2028, U+0085, form feed) are
    characters of the text; `str.splitlines` would split there. Files of other formats are refused by their name.

    Examples:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "text")
      >>> _ = path.write_bytes("one\r\ntwo\u2028still two".encode("utf-8-sig"))
      >>> lines = Lines(str(path))
      >>> len(lines), lines.read([1, 0])
      (2, ['two\u2028still two', 'one'])
    """

    def __init__(self, path: str):
        """Find the lines of a file; raise KdError if it is missing, empty, of another format, or has a huge line."""
        self.path = path
        with open(require_file(path), "rb") as file:
            head = file.read(BLOCK)
            if found := find_format(path, head):
                name, command = found
                raise KdError(
                    f"{path}: expected UTF-8 text or JSON lines, got {name}. Convert it with "
                    f"`{command.format(path=path)}`."
                )
            begin = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
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
        sizes_N = np.diff(self._starts)
        if sizes_N.max() > MAX_LINE:
            raise KdError(
                f"{path}, line {sizes_N.argmax() + 1}: expected at most {MAX_LINE:,} bytes, got {sizes_N.max():,}. "
                "Split it into several lines."
            )
        if len(sizes_N) == 1 and b"\r" in head.rstrip(b"\r\n"):
            raise KdError(
                f"{path}: expected lines that end with a newline, got carriage returns alone, as of old Macs. Convert "
                f"it with `tr '\\r' '\\n' < {path} > {path}.txt`."
            )

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
    """Return the file's path; raise KdError if there is no file, or a folder, pipe or device."""
    file = Path(path).expanduser()
    if not file.is_file():
        got = "a folder" if file.is_dir() else "a pipe or device" if file.exists() else "no file"
        remedy = f"Name its files, such as {path.rstrip('/')}/*.jsonl." if file.is_dir() else "Correct the path."
        raise KdError(f"{path}: expected a UTF-8 text file or .jsonl, got {got}. {remedy}")
    return file


def find_format(path: str, head: bytes) -> tuple[str, str] | None:
    r"""Return the format of a file that is no lines of UTF-8 text, and the command that converts it; else None.

    Args:
      path: whose suffix may tell the format.
      head: first bytes of the file.

    Examples:
      >>> find_format("text.gz", b"\x1f\x8b\x08")[0], find_format("", "a b".encode("utf-16"))[0]
      ('gzip', 'UTF-16')
    """
    for start, found in FORMATS.items():
        if isinstance(start, bytes) and head.startswith(start):
            return found
    zeros = [head[i:1024:2].count(0) for i in (0, 1)]  # Latin letters in UTF-16 have a zero as every other byte
    if min(zeros) == 0 and max(zeros) > min(len(head), 1024) // 4 > 4:
        order = "BE" if zeros[0] else "LE"
        return "UTF-16", f"iconv -f UTF-16{order} -t UTF-8 {{path}} > {{path}}.utf8"
    return FORMATS.get(Path(path).suffix.lower())


def is_blank(text: str) -> bool:
    r"""Return whether a text has no visible character, so that tokenizers give no token for it.

    Examples:
      >>> [is_blank(text) for text in ("", " \u2028\t", "\u200b\ufeff", "\x00", "a", ".")]
      [True, True, True, True, False, False]
    """
    return all(unicodedata.category(character) in INVISIBLE for character in text)


def _parse_json(line: str, fields: Sequence[str], where: str) -> Example:
    """Return the fields of a line's JSON object; raise KdError if it is invalid."""
    row, names = parse_object(line, fields, where), ", ".join(fields)
    if MESSAGES in row and not row.keys() & set(fields):
        row = chat_fields(row[MESSAGES], fields, where)
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


def parse_object(line: str, fields: Sequence[str], where: str) -> dict[str, Any]:
    """Return the JSON object of a line; raise KdError, which names the fields, if it is no object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        reason = "too many brackets" if isinstance(error, RecursionError) else getattr(error, "msg", error)
        remedy = "Write one object a line, as `jq -c '.[]'` does." if line.lstrip()[:1] == "[" else "Correct the line."
        raise KdError(f"{where}: expected a JSON object, got invalid JSON ({reason}). {remedy}") from error
    if not isinstance(row, dict):
        kind = type(row).__name__
        names = " and ".join(f'"{field}"' for field in fields)
        raise KdError(f"{where}: expected an object with {names}, got {kind}. Write one object a line.")
    return row


def chat_fields(messages: Any, fields: Sequence[str], where: str) -> Mapping[str, str]:
    r"""Return a chat as the fields of a prompt and, if there are two fields, its answer, the assistant's last turn.

    A prompt of one user's turn is its text, after the system's with an empty line between. In a longer chat each turn
    has its role before it.

    Examples:
      >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
      >>> chat_fields(turns, ("prompt", "response"), "")
      {'prompt': 'Hi', 'response': 'Hello!'}
      >>> chat_fields([*turns, {"role": "user", "content": "How are you?"}], ("prompt",), "")
      {'prompt': 'User: Hi\n\nAssistant: Hello!\n\nUser: How are you?'}
    """
    try:
        turns = [(turn["role"], turn["content"]) for turn in messages]
    except (TypeError, KeyError):  # no list of objects with both
        turns = []
    if not turns or not all(isinstance(text, str) for turn in turns for text in turn):
        raise KdError(
            f'{where}: expected the field {MESSAGES!r} to be a list of {{"role": ..., "content": ...}} with texts, got '
            "another value. Correct the line."
        )
    ends = ("user", "assistant")[: len(fields)]
    roles = tuple(role for role, _ in turns)
    if len(fields) > 2 or roles[-len(ends) :] != ends:
        raise KdError(
            f"{where}: expected {MESSAGES!r} to end with the roles {' and '.join(ends)} for the fields "
            f"{', '.join(fields)}, got {', '.join(roles)}. Correct the line."
        )
    asked = turns[: len(turns) + 1 - len(fields)]
    several = len(asked) > 1 + (roles[0] == "system")
    texts = [f"{role.capitalize()}: {text}" if several and role != "system" else text for role, text in asked]
    return dict(zip(fields, ("\n\n".join(texts), turns[-1][1]), strict=False))


def _check_text(text: str, where: str) -> None:
    if is_blank(text):
        raise KdError(f"{where}: expected text, got an empty one. Fill it, or remove the example.")
    if SURROGATES.search(text):
        raise KdError(f"{where}: expected Unicode text, got half a character (a lone surrogate). Remove it.")
