"""Held-out splits, dropped references, and leaks between splits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.batches.workers import Processes
from kd_jax.errors import KdError
from kd_jax.sources.splits import describe_leaks, drop_references, hold_out, remove_leaks


def test_split_depends_on_the_text_only():
    rows = [{"en": str(i)} for i in range(500)]
    whole = hold_out(rows, "en", ("validation", "test"), 0.1, 0)
    part = hold_out(rows[249::-1], "en", ("validation", "test"), 0.1, 0)
    assert all(row in whole[split] for split, examples in part.items() for row in examples)
    assert sorted(row["en"] for examples in whole.values() for row in examples) == sorted(row["en"] for row in rows)
    limited = hold_out(rows, "en", ("validation", "test"), 0.1, 5)
    assert limited == {split: examples[:5] for split, examples in whole.items()}


def test_describe_leaks():
    before = {"train": 10, "validation": 20, "test": 1200}
    assert describe_leaks(before, {"train": 0, "validation": 0, "test": 0}) == ""
    assert describe_leaks(before, {"train": 0, "validation": 2, "test": 41}) == (
        "validation: 2 of 20 examples removed, their source is in the training data; "
        "test: 41 of 1,200 examples removed, their source is in the training data"
    )


def make_rows(count):
    return [{"en": f"source {i}", "fr": f"target {i}"} for i in range(count)]


@given(st.integers(1, 40), st.integers(1, 40), st.randoms())
def test_labelled_examples_depend_on_the_text_only(count, labelled, random):
    rows = make_rows(count)
    if labelled > count:
        with pytest.raises(
            KdError, match=f"source.labelled: expected at most the {count} training examples, got {labelled}"
        ):
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


def test_unlabelled_examples_follow_those_without_reference():
    splits = drop_references({"train": make_rows(3), "unlabelled": [{"en": "more"}]}, "en", ("en",), 2)
    assert len(splits["unlabelled"]) == 2 and splits["unlabelled"][1] == {"en": "more"}
    untouched = {"train": make_rows(3), "test": make_rows(1)}
    assert drop_references(untouched, "en", ("en",), 0) == untouched


def test_unlabelled_text_is_training_data():
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


def test_leaks_ignore_case_and_are_removed_from_later_splits():
    splits = {
        "train": [{"en": "Same"}],
        "validation": [{"en": "same"}, {"en": "v"}],
        "test": [{"en": "V"}, {"en": "t"}],
    }
    clean, removed = remove_leaks(splits, "en")
    assert clean == {"train": [{"en": "Same"}], "validation": [{"en": "v"}], "test": [{"en": "t"}]}
    assert removed == {"train": 0, "validation": 1, "test": 1}


def test_leaks_do_not_depend_on_the_number_of_processes():
    train = [{"en": f"Text {i}"} for i in range(0, 40_000, 2)]
    splits = {"train": train, "validation": [{"en": f"text {i}"} for i in range(9)], "test": [{"en": "TEXT 1"}]}
    one, two = (remove_leaks(splits, "en", workers=Processes(processes)) for processes in (1, 2))
    assert one == two
    assert [row["en"] for row in one[0]["validation"]] == ["text 1", "text 3", "text 5", "text 7"]
    assert one[1] == {"train": 0, "validation": 5, "test": 1}
