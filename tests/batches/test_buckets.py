"""Padded lengths, packed rows and rows of a batch."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.batches.buckets import (
    OPEN_ROWS,
    assign_buckets,
    pack_rows,
    padded_lengths,
    padding_warning,
    rows_per_batch,
)
from kd_jax.batches.layouts import Bucket, DecoderOnlyLayout, EncoderDecoderLayout
from kd_jax.tokenizers.sentencepiece import START

LAYOUTS = [EncoderDecoderLayout(START), DecoderOnlyLayout(START)]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["encoder_decoder", "decoder_only"])
lengths_lists = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8)
ascending = st.lists(st.integers(1, 15), min_size=1, max_size=3, unique=True).map(sorted)


def fits(layout, length, bucket):
    """Return whether an example fits: each side in its own room, or both in one row."""
    if layout == LAYOUTS[0]:
        return length[0] <= bucket[0] and length[1] <= bucket[1]
    return sum(length) <= sum(bucket)


@each_layout
@given(lengths_lists, ascending, ascending)
def test_assign_buckets_and_padded_lengths(layout, lengths, prompts, completions):
    """The first bucket that an example fits into; beyond the last one, its smallest multiple."""
    buckets = list(map(Bucket, prompts, completions))
    bucket_N = assign_buckets(np.asarray(lengths), buckets, layout)
    padded = padded_lengths(np.asarray(lengths), buckets, layout)
    for length, bucket, shape in zip(lengths, bucket_N, padded.tolist(), strict=True):
        fitting = [i for i, one in enumerate(buckets) if fits(layout, length, one)]
        assert bucket == (fitting[0] if fitting else len(buckets))
        if fitting:
            assert tuple(shape) == buckets[fitting[0]]
        else:
            multiples = ([n * size for size in buckets[-1]] for n in itertools.count(2))
            assert shape == next(one for one in multiples if fits(layout, length, one))


def test_long_examples_have_smaller_batches():
    """One head's float32 scores stay within 256 MiB (4 rows of 4096 x 4096); at least the divisor."""
    assert rows_per_batch(64, 1, 4096) == 4
    assert rows_per_batch(64, 1, 8192) == rows_per_batch(64, 1, 9000) == 1
    assert rows_per_batch(64, 3, 4096) == 3
    assert rows_per_batch(64, 8, 8192) == 8
    assert rows_per_batch(64, 1, 1024) == rows_per_batch(64, 1, 12) == 64
    assert rows_per_batch(16, 3, 12) == 18


@given(st.integers(1, 128), st.integers(1, 8), st.integers(1, 9000))
def test_rows_per_batch_stays_within_memory_or_at_divisor(batch_size, divisor, length):
    rows = rows_per_batch(batch_size, divisor, length)
    assert rows % divisor == 0 and rows < batch_size + divisor
    assert rows == divisor or 4 * rows * length**2 <= 256 * 2**20


@given(st.data(), st.integers(1, 2), st.integers(0, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_each_example_is_in_one_row_and_no_row_overflows(data, sides, examples, seed):
    room = data.draw(st.lists(st.integers(1, 30), min_size=sides, max_size=sides).map(np.asarray))
    sizes = np.random.default_rng(seed).integers(0, room + 1, (examples, sides))
    rows = pack_rows(sizes, room, seed)
    assert sorted(np.concatenate([[], *rows])) == list(range(examples))
    assert all(len(row) and (sizes[row].sum(0) <= room).all() for row in rows)
    for row, repeated in zip(rows, pack_rows(sizes.copy(), room, seed), strict=True):
        np.testing.assert_array_equal(row, repeated)


@pytest.mark.parametrize("room", [128, 512])
def test_rows_of_usual_sentences_are_nearly_full(room):
    """Log-normal lengths with a median of 25 tokens, one in twenty above 90."""
    lengths = np.random.default_rng(0).lognormal(np.log(25), 0.8, (20_000, 2)).astype(int) + 1
    sizes = DecoderOnlyLayout.sizes(lengths)
    sizes = sizes[sizes[:, 0] <= room]
    rows = pack_rows(sizes, np.asarray([room]), seed=0)
    assert sizes.sum() / (room * len(rows)) > 0.95


def test_seed_decides_which_examples_share_a_row():
    sizes = np.random.default_rng(0).integers(1, 20, (200, 1))
    one, other = ({tuple(sorted(row)) for row in pack_rows(sizes, np.asarray([40]), seed)} for seed in (0, 1))
    assert one != other


@given(st.integers(0, 400), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_rows_equal_best_fit_in_plain_lists(examples, seed):
    """Krell et al.'s rule: the fullest row that has room; if none has, the fullest row is closed."""
    sizes = np.random.default_rng(seed).integers(1, 20, examples)
    open_rows, closed = [[] for _ in range(OPEN_ROWS)], []
    for i in np.random.default_rng(seed).permutation(examples).tolist():
        left = [30 - sum(sizes[j] for j in row) for row in open_rows]
        fitting = [row for row in range(OPEN_ROWS) if left[row] >= sizes[i]]
        chosen = min(fitting or range(OPEN_ROWS), key=left.__getitem__)
        if not fitting:
            closed.append(open_rows[chosen])
            open_rows[chosen] = []
        open_rows[chosen].append(i)
    rows = pack_rows(sizes[:, None], np.asarray([30]), seed)
    assert [row.tolist() for row in rows] == [row for row in closed + open_rows if row]
    assert rows.index_N.nbytes + rows.ends_R.nbytes <= 8 * examples


@pytest.mark.parametrize(
    "tokens, divisor, words",
    [
        (512, 1, ""),
        (512, 8, ""),  # 16 rows on 8 devices
        (96, 4, ""),  # 3 rows padded to 4: a quarter is tolerated
        (64, 8, "2 rows of 32 tokens a batch, padded to 8"),
        (10, 2, "1 row of 32 tokens a batch, padded to 2"),
        (64, 256, "99% of the work is on padding. Set --teacher.training.tokens_per_batch 8192."),
    ],
)
def test_padding_warning(tokens, divisor, words):
    warning = padding_warning("teacher", tokens, 32, divisor)
    assert words in warning and bool(warning) == bool(words)
