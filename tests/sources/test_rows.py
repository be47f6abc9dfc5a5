"""Examples by number: a list's, wherever they stand; how a sample is drawn; work by several processes."""

import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.batches.workers import Processes
from kd_jax.sources.splits import remove_leaks
from kd_jax.sources.rows import Subset, InterleavedRows, ConcatenatedRows, MappedRows, SelectFields, sample
from kd_jax.sources.text_files import read_files

parts = st.lists(st.integers(0, 5), min_size=1, max_size=4)


def numbered(part, count):
    return [{"en": f"{part}.{i}"} for i in range(count)]


@given(parts, st.data())
def test_parts_in_turn_and_behind_each_other(lengths, data):
    lists = list(itertools.starmap(numbered, enumerate(lengths)))
    turns = [row for turn in itertools.zip_longest(*lists) for row in turn if row is not None]
    for rows, want in ((InterleavedRows(*lists), turns), (ConcatenatedRows(*lists), sum(lists, []))):
        assert list(rows) == want and rows == want and len(rows) == len(want)
        numbers = data.draw(st.lists(st.integers(0, len(want) - 1), max_size=9)) if want else []
        assert rows.read(np.asarray(numbers, int)) == [want[i] for i in numbers]
        for i in range(-len(want), len(want)):
            assert rows[i] == want[i] and rows[i:] == want[i:]
        with pytest.raises(IndexError):
            rows[len(want)]


def test_rows_of_a_file_are_pickled_as_the_way_to_it(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"en": "x" * 1000, "fr": str(i)}) + "\n" for i in range(300)))
    rows = MappedRows(Subset(read_files((str(path),), ("en", "fr"), "source.train"), np.arange(0, 300, 2)), SelectFields("fr"))
    pickled = pickle.dumps(rows)
    assert len(pickled) < 8 * 300 + 8 * 150 + 1000
    assert pickle.loads(pickled) == [{"fr": str(i)} for i in range(0, 300, 2)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 300))
def test_a_sample_has_no_more_characters_than_asked_and_is_all_where_that_fits(lengths, characters):
    rows = [{"en": "x" * length, "number": ""} for length in lengths]
    drawn = sample(rows, characters)
    total = sum(len(row["en"]) for row in drawn)
    if sum(lengths) <= characters:
        assert drawn == rows
    else:
        assert total <= max(characters, max(lengths)) and len(drawn) >= 1
        assert len(drawn) == 1 or total > characters - 9  # the next one would have been too long


def test_a_sample_is_drawn_from_everywhere_and_keeps_the_order():
    rows = [{"en": f"{i:04d}"} for i in range(4000)]
    numbers = [int(row["en"]) for row in sample(rows, 4 * 400)]
    assert len(numbers) == 400 and numbers == sorted(set(numbers))
    assert all(60 < sum(low <= n < low + 1000 for n in numbers) < 140 for low in range(0, 4000, 1000))


def test_leaks_are_the_same_whoever_looks_for_them():
    train = [{"en": f"Text {i}"} for i in range(0, 40_000, 2)]
    splits = {"train": train, "validation": [{"en": f"text {i}"} for i in range(9)], "test": [{"en": "TEXT 1"}]}
    one, two = (remove_leaks(splits, "en", workers=Processes(processes)) for processes in (1, 2))
    assert one == two
    assert [row["en"] for row in one[0]["validation"]] == ["text 1", "text 3", "text 5", "text 7"]
    assert one[1] == {"train": 0, "validation": 5, "test": 1}
