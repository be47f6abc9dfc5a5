"""Lazy rows: equal to lists, picklable, and sampled uniformly."""

import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.sources.rows import ConcatenatedRows, MappedRows, SelectFields, interleave, sample, subset
from kd_jax.sources.text_files import read_files

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=4)


def make_rows(part, count):
    return [{"en": f"{part}.{i}"} for i in range(count)]


@given(LENGTHS, st.data())
def test_interleaved_and_concatenated_rows_equal_lists(lengths, data):
    lists = list(itertools.starmap(make_rows, enumerate(lengths)))
    turns = [row for turn in itertools.zip_longest(*lists) for row in turn if row is not None]
    for rows, expected in ((interleave(*lists), turns), (ConcatenatedRows(*lists), sum(lists, []))):
        assert list(rows) == expected and rows == expected and len(rows) == len(expected)
        numbers = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=9)) if expected else []
        assert rows.read(np.asarray(numbers, int)) == [expected[i] for i in numbers]
        for i in range(-len(expected), len(expected)):
            assert rows[i] == expected[i] and rows[i:] == expected[i:]
        with pytest.raises(IndexError):
            rows[len(expected)]


def test_pickled_rows_do_not_contain_the_text(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"en": "x" * 1000, "fr": str(i)}) + "\n" for i in range(300)))
    rows = read_files((str(path),), ("en", "fr"), "source.train")
    rows = MappedRows(subset(rows, np.arange(0, 300, 2)), SelectFields("fr"))
    pickled = pickle.dumps(rows)
    assert len(pickled) < 8 * 300 + 8 * 150 + 1000
    assert pickle.loads(pickled) == [{"fr": str(i)} for i in range(0, 300, 2)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 300))
def test_sample_has_at_most_the_given_characters(lengths, characters):
    rows = [{"en": "x" * length, "number": ""} for length in lengths]
    drawn = sample(rows, characters)
    total = sum(len(row["en"]) for row in drawn)
    if sum(lengths) <= characters:
        assert drawn == rows
    else:
        assert total <= max(characters, max(lengths)) and len(drawn) >= 1
        assert len(drawn) == 1 or total > characters - 9  # the next one would have been too long


def test_sample_is_uniform_and_ordered():
    rows = [{"en": f"{i:04d}"} for i in range(4000)]
    numbers = [int(row["en"]) for row in sample(rows, 4 * 400)]
    assert len(numbers) == 400 and numbers == sorted(set(numbers))
    assert all(60 < sum(low <= n < low + 1000 for n in numbers) < 140 for low in range(0, 4000, 1000))
