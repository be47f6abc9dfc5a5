"""Files: splits of local files, and their error messages."""

import dataclasses
import json

import pytest

from kd_jax.errors import KdError
from kd_jax.sources.files import Files
from tests.helpers.sources import assert_check_raises, assert_round_trip, write

FIELDS = ("en", "fr")


def test_parallel_text_and_json_lines_are_equal(tmp_path):
    rows = [{"en": f"hello {i}", "fr": f"bonjour {i}"} for i in range(200)]
    sides = tuple(write(tmp_path / f"t.{f}", "".join(row[f] + "\n" for row in rows)) for f in FIELDS)
    lines = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    one, two = Files(train=sides, held_out=0.1).splits(FIELDS), Files(train=(lines,), held_out=0.1).splits(FIELDS)
    assert one == two
    assert sum(map(len, one.values())) == 200 and min(map(len, one.values())) > 3
    assert Files(train=(lines,), test=(lines,), limit=7).splits(FIELDS)["test"] == rows[:7]


@pytest.mark.parametrize(
    "left, right, message",
    [
        ("a\nb\n", "a\n", "expected as many lines in every file, got 2 in .*, 1 in .*"),
        ("", "a\n", "empty file"),
        (b"a\n\xff\n", "a\nb\n", "line 2: expected UTF-8"),
        ("a\n\n", "a\nb\n", "/a, line 2: expected text, got an empty one"),
        ("a\nb\n", "a\n \u2028\n", "/b, line 2: expected text, got an empty one"),
    ],
)
def test_invalid_parallel_text(tmp_path, left, right, message):
    with pytest.raises(KdError, match=message):
        Files(train=(write(tmp_path / "a", left), write(tmp_path / "b", right))).splits(FIELDS)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{\n", "line 1: .*invalid JSON"),
        ('{"en": "a", "fr": "b"}\n\n', "line 2: .*invalid JSON"),
        ('{"en": "a"}\n', "line 1: expected the fields en, fr, got en without 'fr'"),
        ("3\n", "line 1: expected an object .*, got int"),
        ('{"en": "a", "fr": null}\n', "line 1: expected text in the field 'fr', got NoneType"),
        ('{"en": "a", "fr": ["b"]}\n', "line 1: expected text in the field 'fr', got list"),
        ('{"en": "a", "fr": " \\u2028"}\n', "line 1, field 'fr': expected text, got an empty one"),
        ('{"en": "a", "fr": "\\ud800"}\n', "line 1, field 'fr': .*half a character"),
        ("\ufeff", "empty file"),
    ],
)
def test_invalid_json_lines(tmp_path, text, message):
    with pytest.raises(KdError, match=message):
        Files(train=(write(tmp_path / "a.jsonl", text),)).splits(FIELDS)


def test_one_field_in_one_text_file(tmp_path):
    text = write(tmp_path / "book.txt", "".join(f"sentence {i}\n" for i in range(100)))
    splits = Files(train=(text,), held_out=0.1).splits(("text",))
    assert {row["text"] for rows in splits.values() for row in rows} == {f"sentence {i}" for i in range(100)}


def test_missing_files(tmp_path):
    with pytest.raises(KdError, match="got no file"):
        Files(train=(str(tmp_path / "none"),)).splits(FIELDS)
    with pytest.raises(KdError, match="fields en, fr, got 3 files"):
        Files(train=("a", "b", "c")).splits(FIELDS)


def test_held_out_fields_are_read(tmp_path):
    rows = [{"en": f"a {i}", "fr": f"b {i}", "other": f"c {i}"} for i in range(100)]
    lines = write(tmp_path / "all.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    plain = write(
        tmp_path / "two.jsonl", "".join(json.dumps({"en": row["en"], "fr": row["fr"]}) + "\n" for row in rows)
    )
    splits = Files(train=(plain,), validation=(lines,), test=(lines,)).splits(FIELDS, ("other",))
    assert splits["test"] == rows and splits["train"][0].keys() == {"en", "fr"}
    for split in ("validation", "test"):  # held out of the training examples
        splits = Files(train=(lines,), **{split: (lines,)}, held_out=0.1).splits(FIELDS, ("other",))
        assert all(row.keys() == {"en", "fr", "other"} for split in ("validation", "test") for row in splits[split])
        with pytest.raises(KdError, match="two.jsonl, line 1: .*got en, fr without 'other'"):
            Files(train=(plain,), **{split: (lines,)}).splits(FIELDS, ("other",))


def test_unlabelled_examples(tmp_path):
    lines = write(tmp_path / "t.jsonl", "".join(f'{{"en": "a {i}", "fr": "b {i}"}}\n' for i in range(50)))
    more = write(tmp_path / "more.en", "x\ny\nz\n")
    source = Files(train=(lines,), validation=(lines,), test=(lines,), unlabelled=(more,), labelled=20)
    splits = source.splits(FIELDS, (), ("en",))
    assert len(splits["train"]) == 20 and [row["en"] for row in splits["unlabelled"][30:]] == ["x", "y", "z"]
    assert source.files()[-1].name == "more.en"
    assert len(dataclasses.replace(source, limit=2, labelled=1).splits(FIELDS, (), ("en",))["unlabelled"]) == 1 + 2
    with pytest.raises(KdError, match="^source.unlabelled: expected no unlabelled examples for this task, .*more.en"):
        source.splits(FIELDS)


@pytest.mark.parametrize(
    "source, message",
    [
        (Files(train=("a",), limit=-1), "source.limit: expected an integer in"),
        (Files(train=("a",), held_out=0.0), "source.held_out: .*got 0.0"),
        (Files(train=("a",), held_out=1.0), "source.held_out: .*got 1.0"),
        (Files(train=("a",), held_out=float("nan")), "source.held_out: .*got nan"),
        (Files(train=()), "source.train: .*got no files"),
        (Files(train=("a",), test="a.jsonl"), "source.test: expected a tuple of paths, got the string 'a.jsonl'"),
        (Files(train=("a",), unlabelled="a.txt"), "source.unlabelled: .*got the string 'a.txt'"),
        (Files(train=("a",), labelled=-1), "source.labelled: expected an integer in"),
    ],
)
def test_check_raises(source, message):
    assert_check_raises(source, message)


def test_good_settings_round_trip():
    assert_round_trip(Files(train=("a",)))
