"""Sources: what a person's own files may get wrong, and splits that do not leak."""

import dataclasses
import itertools
import json
import re

import pytest

from kd_jax import config
from kd_jax.errors import KdError
from kd_jax.sources.debian import Debian
from kd_jax.sources.directions import Directions
from kd_jax.sources.files import Files
from kd_jax.sources.splits import remove_leaks
from kd_jax.sources.tfds import Tfds
from kd_jax.sources.toy import Toy

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
    kept, dropped = remove_leaks(splits, "en")
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
        (Debian(config="en-xx"), "source.config: 'en-xx'; wanted one of en-fr, en-de, summaries, english, index"),
        (Debian(kinds=("novel",)), "source.kinds"),
        (Debian(config="index", kinds=("paragraph",)), "source.kinds: .*; index has synopsis, package, section"),
        (Debian(labelled=-1), "source.labelled: -1"),
        (Tfds("lm1b", {"text": "text"}, labelled=-1), "source.labelled: -1"),
        (Files(train=("a",), labelled=-1), "source.labelled: -1"),
        (Files(train=("a",), unlabelled="a.txt"), "source.unlabelled: 'a.txt' is one string"),
        (Toy(kind="novels"), "source.kind: 'novels'; wanted one of pairs, summaries, documents"),
        (Toy(labelled=-1), "source.labelled: -1"),
        (Directions({}), "source.pairs: none"),
        (Directions({"en": Toy()}), "source.pairs: 'en'; wanted two languages"),
        (Directions({"en-en": Toy()}), "source.pairs: 'en-en'; wanted two languages"),
        (Directions({"en-fr-de": Toy()}), "source.pairs: 'en-fr-de'; wanted two languages"),
        (Directions({"en-fr": Toy(), "en-de": Toy(seed=-1)}), "source.pairs.en-de: source.seed: -1"),
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


GOOD = (
    Files(train=("a",)),
    Tfds("lm1b", {"text": "text"}),
    Debian("index", kinds=("section",)),
    Toy(kind="documents"),
    Directions({"en-fr": Debian("en-fr"), "en-de": Files(train=("de",), limit=7)}),
)


@pytest.mark.parametrize("source", GOOD, ids=lambda source: type(source).__name__)
def test_good_sources_pass_and_are_the_same_from_a_workdir(source):
    source.check()
    assert config.from_data(json.loads(json.dumps(config.to_data(source)))) == source


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        ("pairs", ("text",), "source.kind: 'pairs', texts in an example: 2; the task reads text: take another"),
        (
            "documents",
            ("en", "fr"),
            "source.kind: 'documents', texts in an example: 1; the task reads en, fr: take another",
        ),
    ],
)
def test_made_up_text_of_another_number_of_fields_is_refused(kind, fields, message):
    with pytest.raises(KdError, match=message):
        Toy(kind=kind).splits(fields)
    with pytest.raises(KdError, match="the task reads en, fr, other"):
        Toy().splits(FIELDS, ("other",))


def test_what_toy_texts_teach():
    words = ("one", "two", "three", "four", "five", "six", "seven")
    for row in Toy(50, kind="summaries").splits(("text", "short"))["train"]:
        phrases = row["text"].split(", ")
        assert row["short"] == f"{phrases[0]} and {words[len(phrases) - 2]} more"
    for row in Toy(50, kind="documents").splits(("text",))["train"]:
        phrases = [phrase.split() for phrase in row["text"].split(", ")]
        numbers = [words.index(number) for number, _, _ in phrases]
        assert all((a + 1 - b) % 7 == 0 for a, b in itertools.pairwise(numbers))
        assert len({colour for _, colour, _ in phrases}) == 1


def test_references_are_read_where_they_are_measured(tmp_path):
    rows = [{"en": f"a {i}", "fr": f"b {i}", "other": f"c {i}"} for i in range(100)]
    lines = put(tmp_path / "all.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    plain = put(tmp_path / "two.jsonl", "".join(json.dumps({"en": row["en"], "fr": row["fr"]}) + "\n" for row in rows))
    splits = Files(train=(plain,), validation=(lines,), test=(lines,)).splits(FIELDS, ("other",))
    assert splits["test"] == rows and splits["train"][0].keys() == {"en", "fr"}
    for split in ("validation", "test"):  # held out of the training examples
        splits = Files(train=(lines,), **{split: (lines,)}, held_out=0.1).splits(FIELDS, ("other",))
        assert all(row.keys() == {"en", "fr", "other"} for split in ("validation", "test") for row in splits[split])
        with pytest.raises(KdError, match="two.jsonl, line 1: no field 'other'; it has en, fr"):
            Files(train=(plain,), **{split: (lines,)}).splits(FIELDS, ("other",))


def test_text_without_references(tmp_path):
    lines = put(tmp_path / "t.jsonl", "".join(f'{{"en": "a {i}", "fr": "b {i}"}}\n' for i in range(50)))
    more = put(tmp_path / "more.en", "x\ny\nz\n")
    source = Files(train=(lines,), validation=(lines,), test=(lines,), unlabelled=(more,), labelled=20)
    splits = source.splits(FIELDS, (), ("en",))
    assert len(splits["train"]) == 20 and [row["en"] for row in splits["unlabelled"][30:]] == ["x", "y", "z"]
    assert source.files()[-1].name == "more.en"
    assert len(dataclasses.replace(source, limit=2, labelled=1).splits(FIELDS, (), ("en",))["unlabelled"]) == 1 + 2
    for asked, field in (
        (source, "unlabelled: .*more.en"),
        (Toy(labelled=9), "labelled: 9"),
        (Debian(labelled=9), "l"),
    ):
        with pytest.raises(KdError, match=f"^source.{field}.*this task's examples are nothing without a reference"):
            asked.splits(FIELDS)
    assert len(Toy(labelled=9).splits(FIELDS, (), ("en",))["unlabelled"]) == 400 - 9


def corpus(path, **splits):
    """Files of the pair's texts, "English = other"."""
    names = {}
    for split, lines in splits.items():
        sides = list(zip(*(line.split(" = ") for line in lines), strict=True))
        names[split] = tuple(put(path / f"{split}{i}", "\n".join(side)) for i, side in enumerate(sides))
    return Files(**names)


@pytest.fixture
def directions(tmp_path):
    (tmp_path / "fr").mkdir()
    (tmp_path / "de").mkdir()
    french = corpus(
        tmp_path / "fr",
        train=["a boat = un bateau", "a tree = un arbre"],
        validation=["a bird = un oiseau"],
        test=["THE BIRD = un oiseau", "a stone = une pierre"],
    )
    german = corpus(
        tmp_path / "de", train=["a lamp = eine Lampe"], validation=["A boat = ein Boot"], test=["a door = eine Tür"]
    )
    return Directions({"en-fr": french, "en-de": german})


def test_pairs_in_both_directions_in_turn(directions):
    splits = directions.splits(("source", "target", "direction"))
    assert [tuple(row.values()) for row in splits["train"]] == [
        ("a boat", "un bateau", "en-fr"),
        ("un bateau", "a boat", "fr-en"),
        ("a lamp", "eine Lampe", "en-de"),
        ("eine Lampe", "a lamp", "de-en"),
        ("a tree", "un arbre", "en-fr"),
        ("un arbre", "a tree", "fr-en"),
    ]
    assert len(directions.files()) == 12
    with pytest.raises(KdError, match="source Directions: the task reads en, fr; wanted source, target, direction"):
        directions.splits(FIELDS)


def test_no_text_is_held_out_of_one_pair_and_trained_on_in_another(directions, capsys):
    splits = directions.splits(("source", "target"))
    assert [row["direction"] for row in splits["validation"]] == ["en-fr", "fr-en"]  # "A boat" is trained on in French
    assert {row["source"] for row in splits["test"]} == {"a stone", "une pierre", "a door", "eine Tür"}
    said = "validation: 2 of 4 examples left out, .*; test: 2 of 6 examples left out"
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))


def test_unlabelled_text_of_a_pair_is_in_its_first_language(directions, tmp_path):
    french = dataclasses.replace(directions.pairs["en-fr"], unlabelled=(put(tmp_path / "more", "a cloud"),))
    splits = Directions({"en-fr": french}).splits(("source", "target", "direction"), (), ("source", "direction"))
    assert splits["unlabelled"] == [{"source": "a cloud", "direction": "en-fr"}]
