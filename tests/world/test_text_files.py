"""Text files as people have them: read, or named for what they are, at any length, without a hang."""

import bz2
import dataclasses
import gzip
import json
import lzma
import os
import re
import subprocess
import time
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from kd_jax import Files, Instructions, SentencePiece
from kd_jax.artifacts.workdir import Workdir
from kd_jax.errors import KdError
from kd_jax.phases import prepare
from kd_jax.sources.text_files import MAX_LINE, Lines, read_files
from kd_jax.sources.toy import Toy
from tests.helpers.runs import smoke
from tests.helpers.sources import write

FIELDS = ("en", "fr")
ROWS = [{"en": f"a boat {i}", "fr": f"un bateau {i}"} for i in range(6)]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
USER, ANSWER = {"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Green."}
SYSTEM = {"role": "system", "content": "Be brief."}


def zip_bytes(path):
    with zipfile.ZipFile(path / "made.zip", "w") as file:
        file.writestr("train.jsonl", JSON_LINES)
    return (path / "made.zip").read_bytes()


def parquet_bytes(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path / "made")
    return (path / "made").read_bytes()


FORMATS = {
    "t.jsonl.gz": (lambda _: gzip.compress(JSON_LINES.encode()), "gzip", "gunzip -k"),
    "t.jsonl": (lambda _: gzip.compress(JSON_LINES.encode()), "gzip", "gunzip -k"),  # whatever its name
    "t.bz2": (lambda _: bz2.compress(JSON_LINES.encode()), "bzip2", "bunzip2 -k"),
    "t.xz": (lambda _: lzma.compress(JSON_LINES.encode()), "xz", "xz -dk"),
    "t.zst": (lambda _: b"\x28\xb5\x2f\xfd\x04\x00", "Zstandard", "zstd -dk"),
    "t.zip": (zip_bytes, "a zip archive", "unzip"),
    "t.parquet": (parquet_bytes, "Parquet", "python -c 'import json, sys; import pyarrow.parquet"),
    "t.csv": (lambda _: b"en,fr\na,b\n", "comma-separated values", "python -c 'import json, sys; import csv"),
    "t.tsv": (lambda _: b"a boat\tun bateau\n", "tab-separated values", "cut -f1"),
    "bom.txt": (lambda _: "a boat\n".encode("utf-16"), "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    "little.txt": (lambda _: ("a boat\n" * 9).encode("utf-16-le"), "UTF-16", "iconv -f UTF-16LE"),
    "big.txt": (lambda _: ("a boat\n" * 9).encode("utf-16-be"), "UTF-16", "iconv -f UTF-16BE"),
    "32.txt": (lambda _: "a boat\n".encode("utf-32"), "UTF-32", "iconv -f UTF-32"),
    "mac.txt": (lambda _: b"a boat\ra bird\ra tree\r", "carriage returns alone, as of old Macs", "tr '\\r' '\\n'"),
    "t.pdf": (lambda _: b"%PDF-1.7\n", "PDF", "pdftotext"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("fields", [("text",), FIELDS], ids=["one", "two"])
def test_another_format_is_named_with_its_conversion(tmp_path, name, fields):
    make, kind, command = FORMATS[name]
    path = write(tmp_path / name, make(tmp_path))
    for paths in [(path,), (path,) * len(fields)]:
        message = rf"^{re.escape(path)}: expected .*, got {re.escape(kind)}\. Convert it with `{re.escape(command)}"
        with pytest.raises(KdError, match=message) as error:
            read_files(paths, fields, "source.train")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.parquet", "t.csv", "t.tsv", "bom.txt", "little.txt", "mac.txt"])
def test_the_conversion_that_a_message_names_makes_text(tmp_path, name):
    path = write(tmp_path / name, FORMATS[name][0](tmp_path))
    with pytest.raises(KdError) as error:
        Lines(path)
    command = re.search("`(.*)`", str(error.value))[1].replace("python -c", f"{os.sys.executable} -c")
    before = set(tmp_path.iterdir())
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    made = sorted(set(tmp_path.iterdir()) - before)
    first = [Lines(str(file)).read([0])[0] for file in made]
    expected = {"t.csv": ['{"en": "a", "fr": "b"}'], "t.tsv": ["a boat", "un bateau"]}
    lines = json.dumps(ROWS[0]) if name in ("t.jsonl.gz", "t.parquet") else "a boat"
    assert first == expected.get(name, [lines])


@pytest.mark.parametrize(
    "texts, expected",
    [
        ([USER, ANSWER], ("Name a colour.", "Green.")),
        ([SYSTEM, USER, ANSWER], ("Be brief.\n\nName a colour.", "Green.")),
        ([USER, ANSWER, USER, ANSWER], ("User: Name a colour.\n\nAssistant: Green.\n\nUser: Name a colour.", "Green.")),
    ],
    ids=["one turn", "system", "two turns"],
)
def test_a_chat_is_a_prompt_and_its_last_answer(tmp_path, texts, expected):
    path = write(tmp_path / "t.jsonl", json.dumps({"messages": texts, "id": 3}) + "\n")
    (example,) = read_files((path,), Instructions().fields(), "source.train")
    assert tuple(example.values()) == expected
    unlabelled = write(tmp_path / "u.jsonl", json.dumps({"messages": texts[:-1]}) + "\n")
    assert read_files((unlabelled,), ("prompt",), "source.unlabelled") == [{"prompt": expected[0]}]


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], "to be a list"),
        ("Hi", "to be a list"),
        ([{"from": "human", "value": "Hi"}], "to be a list"),
        ([USER, {"role": "assistant", "content": None}], "to be a list"),
        ([USER, {"role": "assistant", "content": [{"type": "image"}]}], "to be a list"),
        ([[1]], "to be a list"),
        ([USER], "to end with the roles user and assistant .*, got user"),
        ([USER, ANSWER, ANSWER], "to end with the roles user and assistant .*, got user, assistant, assistant"),
        ([USER, {"role": "assistant", "content": " "}], "field 'response': expected text"),
    ],
)
def test_a_chat_without_an_answer_is_refused_by_line(tmp_path, messages, message):
    path = write(tmp_path / "t.jsonl", json.dumps({"messages": messages}) + "\n")
    with pytest.raises(KdError, match=f"t.jsonl, line 1.*{message}"):
        list(read_files((path,), ("prompt", "response"), "source.train"))


def test_a_pattern_names_several_files_in_order(tmp_path):
    for i in (1, 0, 2):
        write(tmp_path / f"part-{i}.jsonl", json.dumps(ROWS[2 * i]) + "\n" + json.dumps(ROWS[2 * i + 1]) + "\n")
        for field in FIELDS:
            write(tmp_path / f"p{i}.{field}", f"{ROWS[2 * i][field]}\n{ROWS[2 * i + 1][field]}\n")
    pattern, sides = str(tmp_path / "part-*.jsonl"), tuple(str(tmp_path / f"p?.{field}") for field in FIELDS)
    named = tuple(str(tmp_path / f"part-{i}.jsonl") for i in range(3))
    for train in ((pattern,), sides, named):
        source = Files(train=train, validation=named[:1], test=named[1:])
        splits = source.splits(FIELDS)
        assert splits["train"] == ROWS and splits["test"] == ROWS[2:]
        assert len(source.files()) == (6 if train == sides else 3) + 3
    (tmp_path / "p2.fr").unlink()
    with pytest.raises(KdError, match=r"^source.train: expected as many files for every field, got 3 of .*, 2 of "):
        Files(train=sides).splits(FIELDS)
    with pytest.raises(KdError, match=r"none-\*.jsonl: expected a pattern that names files, got no file"):
        Files(train=(str(tmp_path / "none-*.jsonl"),)).splits(FIELDS)
    with pytest.raises(KdError, match=r"got 2 files, 1 of them JSON lines\. Use either"):
        Files(train=(named[0], str(tmp_path / "p0.fr"))).splits(FIELDS)


def test_a_file_whose_name_has_a_bracket_is_no_pattern(tmp_path):
    path = write(tmp_path / "a[1].jsonl", JSON_LINES)
    assert Files(train=(path,)).files()[0].name == "a[1].jsonl"


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    start = time.perf_counter()
    for path, got in (
        (tmp_path / "pipe", "a pipe"),
        ("/dev/zero", "a pipe or device"),
        (tmp_path / "folder", "a folder"),
    ):
        for call in (lambda source: source.files(), lambda source: source.splits(FIELDS)):
            with pytest.raises(KdError, match=rf"^{path}: expected .*, got {got}"):
                call(Files(train=(str(path),)))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "line, message",
    [
        ("[" * 10**6, "too many brackets"),
        ('{"en": ' + '{"a":' * 10**6, "too many brackets"),
        ('{"en": ' + "9" * 10**6 + "}", "invalid JSON"),
        ('[{"en": "a", "fr": "b"}]', 'expected an object with "en" and "fr", got list. Write one object a line'),
        ("[", r"invalid JSON .* Write one object a line, as `jq -c '\.\[\]'` does"),
        ("null", "got NoneType"),
    ],
)
def test_json_of_strangers_is_refused_by_line(tmp_path, line, message):
    path = write(tmp_path / "t.jsonl", f"{json.dumps(ROWS[0])}\n{line}\n")
    with pytest.raises(KdError, match=f"^{re.escape(path)}, line 2: .*{message}"):
        list(read_files((path,), FIELDS, "source.train"))


def test_a_huge_line_is_refused_by_its_number_without_reading_it(tmp_path):
    path = write(tmp_path / "t.txt", b"one\n" + b"x" * (MAX_LINE + 1) + b"\ntwo\n")
    with pytest.raises(
        KdError, match=rf"^{re.escape(path)}, line 2: expected at most 16,777,216 bytes, got 16,777,218"
    ):
        Lines(path)


@pytest.mark.parametrize("long", ["x" * 10**6, "the cat sat " * 83_333], ids=["one word", "one phrase"])
def test_prepare_takes_a_line_of_a_megabyte_in_seconds(root, tmp_path, long):
    """SentencePiece alone takes minutes for it: its time grows with the square of a repeating text's length."""
    rows = Toy(400).splits(FIELDS)["train"]
    train = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, {"en": long, "fr": "b"}]))
    others = [write(tmp_path / f"{i}.jsonl", json.dumps(rows[i] | {"en": f"{i} boats"}) + "\n") for i in (0, 1)]
    source = Files(train=(train,), validation=(others[0],), test=(others[1],))
    experiment = dataclasses.replace(smoke(root, []), source=source, tokenizer=SentencePiece(60))
    start = time.perf_counter()
    prepare.run(experiment, Workdir(tmp_path / "work"))
    assert time.perf_counter() - start < 20
    assert Workdir(tmp_path / "work").data.outputs()["counts"]["train"] == len(rows) + 1
