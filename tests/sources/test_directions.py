"""Directions: both directions of several pairs, without leaks between them."""

import dataclasses
import re

import pytest

from kd_jax.errors import KdError
from kd_jax.sources.debian import Debian
from kd_jax.sources.directions import Directions
from kd_jax.sources.files import Files
from kd_jax.sources.toy import Toy
from tests.helpers.sources import assert_check_raises, assert_round_trip, write


def write_pairs(path, **splits):
    """Write files of pairs "English = other"; return their source."""
    names = {}
    for split, lines in splits.items():
        sides = list(zip(*(line.split(" = ") for line in lines), strict=True))
        names[split] = tuple(write(path / f"{split}{i}", "\n".join(side)) for i, side in enumerate(sides))
    return Files(**names)


@pytest.fixture
def directions(tmp_path):
    (tmp_path / "fr").mkdir()
    (tmp_path / "de").mkdir()
    french = write_pairs(
        tmp_path / "fr",
        train=["a boat = un bateau", "a tree = un arbre"],
        validation=["a bird = un oiseau"],
        test=["THE BIRD = un oiseau", "a stone = une pierre"],
    )
    german = write_pairs(
        tmp_path / "de", train=["a lamp = eine Lampe"], validation=["A boat = ein Boot"], test=["a door = eine Tür"]
    )
    return Directions({"en-fr": french, "en-de": german})


def test_directions_are_interleaved(directions):
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
    with pytest.raises(KdError, match="fields source, target, direction of Directions, got en, fr"):
        directions.splits(("en", "fr"))


def test_leaks_between_pairs_are_removed(directions, capsys):
    splits = directions.splits(("source", "target"))
    assert [row["direction"] for row in splits["validation"]] == ["en-fr", "fr-en"]  # "A boat" is trained on in French
    assert {row["source"] for row in splits["test"]} == {"a stone", "une pierre", "a door", "eine Tür"}
    message = "validation: 2 of 4 examples removed, .*; test: 2 of 6 examples removed"
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_unlabelled_text_is_in_the_first_language(directions, tmp_path):
    french = dataclasses.replace(directions.pairs["en-fr"], unlabelled=(write(tmp_path / "more", "a cloud"),))
    splits = Directions({"en-fr": french}).splits(("source", "target", "direction"), (), ("source", "direction"))
    assert splits["unlabelled"] == [{"source": "a cloud", "direction": "en-fr"}]


@pytest.mark.parametrize(
    "source, message",
    [
        (Directions({}), "source.pairs: .*got none"),
        (Directions({"en": Toy()}), "source.pairs: expected two languages, got 'en'"),
        (Directions({"en-en": Toy()}), "source.pairs: expected two languages, got 'en-en'"),
        (Directions({"en-fr-de": Toy()}), "source.pairs: expected two languages, got 'en-fr-de'"),
        (Directions({"en-fr": Toy(), "en-de": Toy(seed=-1)}), "source.pairs.en-de: source.seed: .*got -1"),
    ],
)
def test_check_raises(source, message):
    assert_check_raises(source, message)


def test_good_settings_round_trip():
    assert_round_trip(Directions({"en-fr": Debian("en-fr"), "en-de": Files(train=("de",), limit=7)}))
