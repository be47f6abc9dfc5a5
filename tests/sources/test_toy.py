"""Toy: distinct texts, their structure, and error messages."""

import itertools

import pytest

from kd_jax.errors import KdError
from kd_jax.sources.toy import Toy
from tests.helpers.sources import assert_check_raises, assert_round_trip

FIELDS = ("en", "fr")


def test_splits_are_reproducible_and_disjoint():
    assert Toy(100).splits(FIELDS) == Toy(100).splits(FIELDS)
    sources = [row["en"] for rows in Toy(100).splits(FIELDS).values() for row in rows]
    assert len(sources) == len(set(sources)) == 124


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        ("pairs", ("text",), "source.kind: expected a kind with the task's fields text, got 'pairs' with 2 texts"),
        (
            "documents",
            ("en", "fr"),
            "source.kind: expected a kind with the task's fields en, fr, got 'documents' with 1 texts",
        ),
    ],
)
def test_number_of_fields_must_fit(kind, fields, message):
    with pytest.raises(KdError, match=message):
        Toy(kind=kind).splits(fields)
    with pytest.raises(KdError, match="the task's fields en, fr, other"):
        Toy().splits(FIELDS, ("other",))


def test_structure_of_the_texts():
    words = ("one", "two", "three", "four", "five", "six", "seven")
    for row in Toy(50, kind="summaries").splits(("text", "short"))["train"]:
        phrases = row["text"].split(", ")
        assert row["short"] == f"{phrases[0]} and {words[len(phrases) - 2]} more"
    for row in Toy(50, kind="documents").splits(("text",))["train"]:
        phrases = [phrase.split() for phrase in row["text"].split(", ")]
        numbers = [words.index(number) for number, _, _ in phrases]
        assert all((a + 1 - b) % 7 == 0 for a, b in itertools.pairwise(numbers))
        assert len({colour for _, colour, _ in phrases}) == 1


def test_unlabelled_examples():
    assert len(Toy(labelled=9).splits(FIELDS, (), ("en",))["unlabelled"]) == 400 - 9
    with pytest.raises(KdError, match="^source.labelled: expected no unlabelled examples for this task, got 9"):
        Toy(labelled=9).splits(FIELDS)


@pytest.mark.parametrize(
    "source, message",
    [
        (Toy(kind="novels"), "source.kind: expected pairs, summaries, documents, got 'novels'"),
        (Toy(labelled=-1), "source.labelled: expected an integer in"),
        (Toy(examples=7), r"source.examples: expected an integer in .8, 50000., got 7"),
        (Toy(examples=100_000), r"source.examples: expected an integer in .8, 50000., got 100000"),
        (Toy(seed=-1), "source.seed: expected an integer in"),
    ],
)
def test_check_raises(source, message):
    assert_check_raises(source, message)


def test_good_settings_round_trip():
    assert_round_trip(Toy(kind="documents"))
