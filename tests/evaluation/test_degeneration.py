"""Degenerate texts are detected in any script; texts like the references raise no warning."""

import pytest

from kd_jax.evaluation.degeneration import empty_texts, length_ratio, repetition, warnings

REFERENCES = ["service de sauvegarde réseau", "outil graphique pour Mercurial", "modems packet radio", "éditeur"]


def test_repetition_closed_form():
    assert repetition(["aaaaaaa"]) == 0.75  # four 4-grams, one of them new
    assert repetition(["abcdefg"]) == 0 and repetition(["ab", ""]) == 0
    assert repetition(["aaaaaaa", "abcdefg"]) == 3 / 8  # of the corpus, not a mean of texts
    assert repetition(["abcd", "abcd"]) == 0  # within a text only


def test_texts_like_the_references_have_no_warning():
    assert warnings(REFERENCES, REFERENCES) == [] == warnings([], [])


def test_repetitive_references_allow_repetitive_texts():
    refrain = ["la la la la la la la la"]
    assert warnings(refrain, refrain) == [] and len(warnings(refrain, ["la vie en rose, ma chère"])) == 1


@pytest.mark.parametrize(
    "texts, words",
    [
        (["le le le le le le le le le le", *REFERENCES[1:]], "repetitive"),
        (["Malalalalalalalalalalalalalal", *REFERENCES[1:]], "repetitive"),
        ([text[:9] for text in REFERENCES], "times the references'"),
        ([text + " abcdefghijklmnopqrstuvwxyz" for text in REFERENCES], "times the references'"),
        ([*REFERENCES[:3], " "], "1 of 4 texts are empty"),
    ],
)
def test_each_kind_of_degeneration_has_its_warning(texts, words):
    (warning,) = warnings(texts, REFERENCES)
    assert words in warning


def test_empty_reference_expects_no_text():
    assert empty_texts(["", "a"], ["", "a"]) == 0 and length_ratio([""], [""]) == 1
