"""Held-out examples: placed by their text alone, and leaks in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.sources.splits import drop_references, hold_out, describe_leaks, remove_leaks


def test_an_example_stays_in_its_split_whatever_stands_around_it():
    rows = [{"en": str(i)} for i in range(500)]
    whole = hold_out(rows, "en", ("validation", "test"), 0.1, 0)
    part = hold_out(rows[249::-1], "en", ("validation", "test"), 0.1, 0)
    assert all(row in whole[split] for split, examples in part.items() for row in examples)
    assert sorted(row["en"] for examples in whole.values() for row in examples) == sorted(row["en"] for row in rows)
    limited = hold_out(rows, "en", ("validation", "test"), 0.1, 5)
    assert limited == {split: examples[:5] for split, examples in whole.items()}


def test_what_is_said_of_leaks():
    before = {"train": 10, "validation": 20, "test": 1200}
    assert describe_leaks(before, {"train": 0, "validation": 0, "test": 0}) == ""
    assert describe_leaks(before, {"train": 0, "validation": 2, "test": 41}) == (
        "validation: 2 of 20 examples left out, their source is trained on; "
        "test: 41 of 1,200 examples left out, their source is trained on"
    )


def numbered(count):
    return [{"en": f"source {i}", "fr": f"target {i}"} for i in range(count)]


@given(st.integers(1, 40), st.integers(1, 40), st.randoms())
def test_references_stay_with_the_same_texts(count, labelled, random):
    rows = numbered(count)
    if labelled > count:
        with pytest.raises(KdError, match=f"source.labelled: {labelled}, of {count} training examples"):
            drop_references({"train": rows}, "en", ("en",), labelled)
        return
    splits = drop_references({"train": rows}, "en", ("en",), labelled)
    assert len(splits["train"]) == labelled
    assert [row for row in rows if row in splits["train"]] == splits["train"]
    assert splits["unlabelled"] == [{"en": row["en"]} for row in rows if row not in splits["train"]]
    shuffled = random.sample(rows, count)
    assert all(row in splits["train"] for row in drop_references({"train": shuffled}, "en", (), labelled)["train"])
    fewer = drop_references({"train": rows}, "en", ("en",), max(1, labelled // 2))["train"]
    assert all(row in splits["train"] for row in fewer)


def test_prompts_that_were_given_stay_behind_those_that_lost_their_reference():
    splits = drop_references({"train": numbered(3), "unlabelled": [{"en": "more"}]}, "en", ("en",), 2)
    assert len(splits["unlabelled"]) == 2 and splits["unlabelled"][1] == {"en": "more"}
    untouched = {"train": numbered(3), "test": numbered(1)}
    assert drop_references(untouched, "en", ("en",), 0) == untouched


def test_unlabelled_text_is_trained_on():
    splits = {
        "train": [{"en": "a", "fr": "x"}],
        "unlabelled": [{"en": "B"}, {"en": "a"}],
        "validation": [{"en": "b", "fr": "y"}, {"en": "c", "fr": "X"}],
        "test": [{"en": "C", "fr": "z"}, {"en": "d", "fr": "a"}],
    }
    clean, dropped = remove_leaks(splits, "en")
    assert clean["unlabelled"] == splits["unlabelled"]
    assert clean["validation"] == [{"en": "c", "fr": "X"}] and clean["test"] == [{"en": "d", "fr": "a"}]
    assert dropped == {"train": 0, "unlabelled": 0, "validation": 1, "test": 1}
    both, dropped = remove_leaks(splits, "en", "fr")  # a text of either side
    assert not both["validation"] and not both["test"]
    assert dropped == {"train": 0, "unlabelled": 0, "validation": 2, "test": 2}
