"""Leaks between splits: texts are compared as a model reads them."""

import hashlib
import json
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.sources.directions import Directions
from kd_jax.sources.files import Files
from kd_jax.sources.splits import hold_out, normal_form, remove_leaks
from tests.helpers.sources import write

# (in the training data, in the test data): no reader sees more than a difference of case.
DUPLICATES = [
    ("Le café est fermé.", unicodedata.normalize("NFD", "Le café est fermé.")),
    ("Open the file", "open the FILE"),
    ("two  blanks", "two blanks"),
    ("100 km", "100\u00a0km"),
    ("the ﬁle", "the file"),
    ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
    ("한국어", unicodedata.normalize("NFD", "한국어")),
    ("a tab\there ", " a tab here"),
    ("half\u200bwidth", "half width"),
    ("\ufeffmark", "mark"),
    ("one\u2028two", "one\r\ntwo"),
    ("STRASSE", "straße"),
    ("\u202bשלום", "שלום"),
]
DIFFERENT = [("a b", "ab"), ("resume", "résumé"), ("1.5", "15"), ("cats", "cat"), ("é", "e"), ("x²y", "x y")]


@pytest.mark.parametrize("train, test", DUPLICATES)
def test_a_duplicate_is_a_leak(train, test):
    splits = {"train": [{"en": train}], "validation": [{"en": "v"}], "test": [{"en": test}, {"en": "t"}]}
    clean, removed = remove_leaks(splits, "en")
    assert list(clean["test"]) == [{"en": "t"}] and removed == {"train": 0, "validation": 0, "test": 1}


@pytest.mark.parametrize("train, test", DIFFERENT)
def test_another_text_is_no_leak(train, test):
    assert remove_leaks({"train": [{"en": train}], "test": [{"en": test}]}, "en")[1] == {"train": 0, "test": 0}


def test_all_duplicates_of_a_corpus_count(tmp_path):
    rows = {split: [{"en": pair[i], "fr": f"f{i}"} for pair in DUPLICATES] for i, split in enumerate(("train", "test"))}
    paths = {
        split: (write(tmp_path / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in examples)),)
        for split, examples in rows.items()
    }
    splits = Files(**paths, validation=(write(tmp_path / "v.jsonl", '{"en": "v", "fr": "w"}\n'),)).splits(("en", "fr"))
    assert remove_leaks(splits, "en")[1] == {"train": 0, "validation": 0, "test": len(DUPLICATES)}


def test_directions_find_a_duplicate_on_either_side(tmp_path):
    """The French side of an English-French test pair is trained on from German."""
    pairs = {
        "en-fr": {"train": ("a boat", "un bateau"), "test": ("the coffee", "LE  CAFE\u0301"), "validation": ("x", "y")},
        "de-fr": {"train": ("der Kaffee", "le café"), "test": ("das Haus", "la maison"), "validation": ("z", "w")},
    }
    sources = {
        pair: Files(
            **{
                split: tuple(write(tmp_path / f"{pair}.{split}.{i}", text + "\n") for i, text in enumerate(texts))
                for split, texts in splits.items()
            }
        )
        for pair, splits in pairs.items()
    }
    splits = Directions(sources).splits(("source", "target", "direction"))
    assert {row["direction"] for row in splits["test"]} == {"de-fr", "fr-de"}


@given(st.text())
def test_normalisation_and_blanks_do_not_matter(text):
    form = normal_form(text)
    assert normal_form(f" \ufeff{text}\u2003\n") == form
    assert normal_form(unicodedata.normalize("NFD", text)) == normal_form(unicodedata.normalize("NFC", text)) == form


def test_duplicates_are_held_out_together():
    """All variants of a text go to one split, so that none is lost to the others' leaks."""
    variants = ["Text {}", "text  {}", "TEXT\u00a0{}", "\ufeffText {} ", "Ｔｅｘｔ {}"]
    rows = [{"en": variant.format(i)} for i in range(100) for variant in variants]
    splits = hold_out(rows, "en", ("validation", "test"), 0.2, 0)
    assert all(len(examples) % len(variants) == 0 for examples in splits.values()) and len(splits["test"]) > 25
    assert sum(remove_leaks(splits, "en")[1].values()) == 0


def test_a_text_in_normal_form_keeps_the_split_of_version_0_2():
    """Validation takes hashes of "validation" + text below the share, as before; a corpus stays as it was."""
    rows = [{"en": f"sentence {i}"} for i in range(50)]
    splits = hold_out(rows, "en", ("validation", "test"), 0.1, 0)
    share = lambda text: int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56  # noqa: E731
    validation = [row for row in rows if share(f"validation{row['en']}") < 0.1]
    assert splits["validation"] == validation and [row["en"] for row in validation] == [
        "sentence 17",
        "sentence 31",
        "sentence 41",
    ]
    assert [row["en"] for row in splits["test"]] == ["sentence 0", "sentence 25", "sentence 39", "sentence 49"]


def test_time_is_linear_in_the_length_of_a_text():
    """A million characters, also of marks that normalisation sorts, take a second or two."""
    start = time.perf_counter()
    for text in ("a" * 10**6, "é " * 500_000, "a" + "\u0301\u0323" * 500_000, "\u200b" * 10**6):
        normal_form(text)
    assert time.perf_counter() - start < 10
