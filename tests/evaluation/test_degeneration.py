"""Rubbish is told from prose, in any script, and prose is left alone."""

import pytest

from kd_jax.evaluation.degeneration import empty_texts, length_ratio, repetition, warnings

REFERENCES = ["service de sauvegarde réseau", "outil graphique pour Mercurial", "modems packet radio", "éditeur"]


def test_repetition_closed_form():
    assert repetition(["aaaaaaa"]) == 0.75  # four 4-grams, one of them new
    assert repetition(["abcdefg"]) == 0 and repetition(["ab", ""]) == 0
    assert repetition(["aaaaaaa", "abcdefg"]) == 3 / 8  # of the corpus, not a mean of texts
    assert repetition(["abcd", "abcd"]) == 0  # within a text alone


def test_texts_like_the_references_raise_nothing():
    assert warnings(REFERENCES, REFERENCES) == [] == warnings([], [])


def test_references_that_repeat_excuse_texts_that_do():
    refrain = ["la la la la la la la la"]
    assert warnings(refrain, refrain) == [] and len(warnings(refrain, ["la vie en rose, ma chère"])) == 1


@pytest.mark.parametrize(
    "texts, words",
    [
        (["le le le le le le le le le le", *REFERENCES[1:]], "repeats itself"),
        (["Malalalalalalalalalalalalalal", *REFERENCES[1:]], "repeats itself"),
        ([text[:9] for text in REFERENCES], "characters for each"),
        ([text + " abcdefghijklmnopqrstuvwxyz" for text in REFERENCES], "characters for each"),
        ([*REFERENCES[:3], " "], "1 of 4 texts are empty"),
    ],
)
def test_each_kind_of_rubbish_has_its_warning(texts, words):
    (warning,) = warnings(texts, REFERENCES)
    assert words in warning


def test_an_empty_reference_asks_for_nothing():
    assert empty_texts(["", "a"], ["", "a"]) == 0 and length_ratio([""], [""]) == 1
