"""Held-out examples: placed by their text alone, and leaks in words."""

from kd_jax.data.held_out import hold_out, leak_sentence


def test_an_example_stays_in_its_split_whatever_stands_around_it():
    rows = [{"en": str(i)} for i in range(500)]
    whole = hold_out(rows, "en", ("validation", "test"), 0.1, 0)
    part = hold_out(reversed(rows[:250]), "en", ("validation", "test"), 0.1, 0)
    assert all(row in whole[split] for split, examples in part.items() for row in examples)
    assert sorted(row["en"] for examples in whole.values() for row in examples) == sorted(row["en"] for row in rows)
    limited = hold_out(iter(rows), "en", ("validation", "test"), 0.1, 5)
    assert limited == {split: examples[:5] for split, examples in whole.items()}


def test_what_is_said_of_leaks():
    before = {"train": 10, "validation": 20, "test": 1200}
    assert leak_sentence(before, {"train": 0, "validation": 0, "test": 0}) == ""
    assert leak_sentence(before, {"train": 0, "validation": 2, "test": 41}) == (
        "validation: 2 of 20 examples left out, their source is trained on; "
        "test: 41 of 1,200 examples left out, their source is trained on"
    )
