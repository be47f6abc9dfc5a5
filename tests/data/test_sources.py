"""Sources: what a person's own files may get wrong, and splits that do not leak."""

import json

import pytest

from kd_jax.data.held_out import without_leaks
from kd_jax.data.sources import Debian, Files, Tfds, Toy
from kd_jax.errors import KdError

FIELDS = ("en", "fr")


def put(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_parallel_text_and_json_lines_say_the_same(tmp_path):
    rows = [{"en": f"hello {i}", "fr": f"bonjour {i}"} for i in range(200)]
    sides = tuple(put(tmp_path / f"t.{f}", "".join(row[f] + "\n" for row in rows)) for f in FIELDS)
    lines = put(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    one, two = Files(train=sides, held_out=0.1).splits(FIELDS), Files(train=(lines,), held_out=0.1).splits(FIELDS)
    assert one == two
    assert sum(map(len, one.values())) == 200 and min(map(len, one.values())) > 3
    assert Files(train=(lines,), test=(lines,), limit=7).splits(FIELDS)["test"] == rows[:7]


@pytest.mark.parametrize(
    "left, right, message",
    [
        ("a\nb\n", "a\n", "2 in .*, 1 in .*; line n of one must be line n of the other"),
        ("", "a\n", "empty"),
        (b"a\n\xff\n", "a\nb\n", "line 2: not UTF-8"),
        ("a\n\n", "a\nb\n", "/a, line 2: empty"),
        ("a\nb\n", "a\n \u2028\n", "/b, line 2: empty"),
    ],
)
def test_bad_parallel_text(tmp_path, left, right, message):
    with pytest.raises(KdError, match=message):
        Files(train=(put(tmp_path / "a", left), put(tmp_path / "b", right))).splits(FIELDS)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{\n", "line 1: not JSON"),
        ('{"en": "a", "fr": "b"}\n\n', "line 2: not JSON"),
        ('{"en": "a"}\n', "line 1: no field 'fr'; it has en, wanted en, fr"),
        ("3\n", "line 1: int; wanted an object"),
        ('{"en": "a", "fr": null}\n', "line 1: the field 'fr' is NoneType; wanted a text"),
        ('{"en": "a", "fr": ["b"]}\n', "line 1: the field 'fr' is list; wanted a text"),
        ('{"en": "a", "fr": " \\u2028"}\n', "line 1, field 'fr': empty"),
        ('{"en": "a", "fr": "\\ud800"}\n', "line 1, field 'fr': half a character"),
        ("\ufeff", "empty"),
    ],
)
def test_bad_json_lines(tmp_path, text, message):
    with pytest.raises(KdError, match=message):
        Files(train=(put(tmp_path / "a.jsonl", text),)).splits(FIELDS)


def test_one_field_in_one_text_file(tmp_path):
    text = put(tmp_path / "book.txt", "".join(f"sentence {i}\n" for i in range(100)))
    splits = Files(train=(text,), held_out=0.1).splits(("text",))
    assert {row["text"] for rows in splits.values() for row in rows} == {f"sentence {i}" for i in range(100)}


def test_missing_files_and_wrong_numbers_of_them(tmp_path):
    with pytest.raises(KdError, match="no such file"):
        Files(train=(str(tmp_path / "none"),)).splits(FIELDS)
    with pytest.raises(KdError, match="3 files for the fields en, fr"):
        Files(train=("a", "b", "c")).splits(FIELDS)


def test_held_out_sources_that_are_trained_on_are_dropped():
    splits = {
        "train": [{"en": "Same"}],
        "validation": [{"en": "same"}, {"en": "v"}],
        "test": [{"en": "V"}, {"en": "t"}],
    }
    kept, dropped = without_leaks(splits, "en")
    assert kept == {"train": [{"en": "Same"}], "validation": [{"en": "v"}], "test": [{"en": "t"}]}
    assert dropped == {"train": 0, "validation": 1, "test": 1}


def test_toy_is_the_same_every_time_and_its_splits_are_disjoint():
    assert Toy(100).splits(FIELDS) == Toy(100).splits(FIELDS)
    sources = [row["en"] for rows in Toy(100).splits(FIELDS).values() for row in rows]
    assert len(sources) == len(set(sources)) == 124


@pytest.mark.parametrize(
    "source, message",
    [
        (Files(train=("a",), limit=-1), "source.limit: -1"),
        (Files(train=("a",), held_out=0.0), "source.held_out: 0.0"),
        (Files(train=("a",), held_out=1.0), "source.held_out: 1.0"),
        (Files(train=("a",), held_out=float("nan")), "source.held_out: nan"),
        (Files(train=()), "source.train: no files"),
        (Files(train=("a",), test="a.jsonl"), "source.test: 'a.jsonl' is one string"),
        (Tfds("lm1b", {"text": "text"}, limit=-1), "source.limit: -1"),
        (Tfds("lm1b", {"text": "text"}, held_out=-0.1), "source.held_out: -0.1"),
        (Tfds("lm1b", {}), "source: dataset, fields and train"),
        (Debian(pair="en-xx"), "source.pair: 'en-xx'; wanted en-fr or en-de"),
        (Debian(kinds=("novel",)), "source.kinds"),
        (Debian(kinds=()), "source.kinds"),
        (Debian(max_characters=-1), "source.max_characters: -1"),
        (Debian(limit=-1), "source.limit: -1"),
        (Toy(examples=7), "source.examples: 7"),
        (Toy(examples=100_000), "source.examples: 100000"),
        (Toy(seed=-1), "source.seed: -1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(source, message):
    with pytest.raises(KdError, match=f"^{message}"):
        source.check()


def test_good_sources_pass():
    for source in (Files(train=("a",)), Tfds("lm1b", {"text": "text"}), Debian(), Toy()):
        source.check()


def test_a_language_pair_for_a_task_of_one_field_is_refused():
    with pytest.raises(KdError, match="source Toy: a language pair; the task reads text"):
        Toy().splits(("text",))
