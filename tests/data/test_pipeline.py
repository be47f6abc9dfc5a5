"""Batches: pure functions of (seed, number); buckets of two lengths; trap 9 (cache and data out of step)."""

import itertools

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.artifacts.manifest import Folder
from kd_jax.data import pipeline, store
from kd_jax.data.layouts import Bucket, EncoderDecoderLayout
from kd_jax.data.pipeline import (
    EvalBatches,
    Split,
    TrainBatches,
    example_digest,
    lengths_of,
    padded_lengths,
    place,
    rows_within,
    train_batches,
)
from kd_jax.data.store import Store
from kd_jax.data.tokenizers import START
from kd_jax.errors import KdError
from kd_jax.tasks.base import ENCODED, Encoded
from kd_jax.types import Field

LAYOUT = EncoderDecoderLayout()
BUCKETS = (Bucket(6, 4), Bucket(9, 8), Bucket(12, 12))
EXAMPLES = 150
SIGNAL = {"value": Field((2,), "float32")} | pipeline.DIGEST


def example(i):
    """Lengths up to 12; the first i % 3 targets of a completion do not count."""
    rng = np.random.default_rng(i)
    prompt, completion = (rng.integers(4, 50, rng.integers(1, 13)).astype(np.int32) for _ in range(2))
    return Encoded(prompt, completion, np.arange(len(completion)) >= i % 3)


def signal_record(i):
    """One entry per target that counts: (example, place in the completion)."""
    places = np.flatnonzero(example(i).counts)
    value = np.stack([np.full(len(places), i), places], 1).astype(np.float32)
    return {"value": value, "digest": example_digest(example(i))}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = Folder(tmp_path_factory.mktemp("data"), "prepare")
    folder.begin({})
    records = [example(i)._asdict() for i in range(EXAMPLES)]
    store.write(folder.path, "train", ENCODED, EXAMPLES, lambda start, stop: records[start:stop], 64)
    np.save(folder.path / "train.lengths.npy", lengths_of(records))
    store.write(folder.path, "signal", SIGNAL, EXAMPLES, lambda start, stop: map(signal_record, range(start, stop)), 64)
    folder.finish({}, 0.0)
    return folder


def batches(data, buckets=BUCKETS, **changed):
    options = {"tokens_per_batch": 32, "divisor": 2, "seed": 0} | changed
    return TrainBatches(Split(data, "train", {"s": Store(data.path, "signal")}), LAYOUT, buckets, **options)


def test_an_example_is_met_at_most_once_in_an_epoch_and_nearly_all_are(data):
    source = batches(data)
    for epoch in range(3):
        seen = np.concatenate([source[epoch * source.per_epoch + i].inputs.index_B for i in range(source.per_epoch)])
        assert len(set(seen)) == len(seen) > 0.9 * EXAMPLES


def test_rows_hold_their_example_and_its_record(data):
    """A record has one entry for each target that counts, and the batch holds it there (trap 9)."""
    source = batches(data)
    for batch in (source[i] for i in range(source.per_epoch)):
        encoder, decoder = batch.inputs.encoder, batch.inputs.decoder
        for b, i in enumerate(batch.inputs.index_B):
            want = example(i)
            assert encoder.ids_BT[b][encoder.segment_BT[b] > 0].tolist() == want.prompt.tolist()
            assert decoder.ids_BT[b][decoder.segment_BT[b] > 0].tolist() == [START, *want.completion[:-1]]
            assert batch.targets_BT[b][: len(want.completion)].tolist() == want.completion.tolist()
            places = np.flatnonzero(batch.mask_BT[b])
            assert places.tolist() == list(range(i % 3, len(want.completion)))
            assert batch.payload["s"]["value"][b][places].tolist() == [[i, place] for place in places]


@given(st.integers(0, 2**30), st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_a_batch_depends_on_seed_and_number_alone(data, number, seed):
    chex.assert_trees_all_equal(batches(data, seed=seed)[number], batches(data, seed=seed)[number])


def test_other_seeds_and_epochs_have_other_orders(data):
    one, two = batches(data), batches(data, seed=1)
    assert any(one[i].inputs.index_B.tolist() != two[i].inputs.index_B.tolist() for i in range(4))
    assert one[0].inputs.index_B.tolist() != one[one.per_epoch].inputs.index_B.tolist()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_slices_of_the_same_batches(data, hosts):
    whole = batches(data, divisor=4)
    parts = [batches(data, divisor=4, shard=(host, hosts)) for host in range(hosts)]
    for i in (0, 5, 100):
        joined = [(part[i].inputs.index_B, part[i].payload["s"]["value"]) for part in parts]
        want = whole[i].inputs.index_B, whole[i].payload["s"]["value"]
        chex.assert_trees_all_equal(tuple(map(np.concatenate, zip(*joined, strict=True))), want)


def test_an_iterator_goes_on_where_its_state_was_saved(data):
    def fresh():
        return iter(train_batches(Split(data, "train"), LAYOUT, BUCKETS, tokens_per_batch=32, divisor=1, seed=0))

    never_stopped = list(itertools.islice(fresh(), 12))
    first = fresh()
    for _ in range(5):
        next(first)
    state, second = first.get_state(), fresh()
    second.set_state(state)
    for got, want in zip(itertools.islice(second, 7), never_stopped[5:], strict=True):
        chex.assert_trees_all_equal(got, want)


def test_a_record_of_other_token_ids_is_refused(data, tmp_path):
    def shifted(start, stop):
        return (signal_record((i + 1) % EXAMPLES) for i in range(start, stop))

    store.write(tmp_path, "signal", SIGNAL, EXAMPLES, shifted)
    with pytest.raises(KdError, match="record 7 was made for other token ids than example 7"):
        Split(data, "train", {"s": Store(tmp_path, "signal")}).read(7)
    store.write(tmp_path, "short", SIGNAL, 9, shifted)
    with pytest.raises(KdError, match="9 records for 150"):
        Split(data, "train", {"s": Store(tmp_path, "short")})


@pytest.mark.parametrize("side", ["prompt", "completion"])
def test_one_flipped_token_changes_the_digest(side):
    ids = example(0)._asdict()[side]
    other = example(0)._replace(**{side: np.where(np.arange(len(ids)) == 0, 51, ids).astype(np.int32)})
    assert example_digest(example(0)).tolist() != example_digest(other).tolist()


def test_a_token_that_changes_sides_changes_the_digest():
    one, other = (Encoded(np.int32(p), np.int32(c), np.ones(len(c), bool)) for p, c in (([5, 6], [7]), ([5], [6, 7])))
    assert example_digest(one).tolist() != example_digest(other).tolist()


def test_evaluation_meets_every_example_once_and_cuts_none(data):
    plan = EvalBatches(Split(data, "train"), LAYOUT, BUCKETS[:2], 16, divisor=3)
    indices = np.concatenate([batch.inputs.index_B for batch in plan])
    assert sorted(indices[indices >= 0]) == list(range(EXAMPLES))
    for number, batch in enumerate(plan):
        assert len(batch.inputs.index_B) == 18
        prompts = plan.prompts(number)
        chex.assert_trees_all_equal(prompts.encoder, batch.inputs.encoder)
        np.testing.assert_array_equal(prompts.index_B, batch.inputs.index_B)
        for b, i in enumerate(batch.inputs.index_B):
            lengths = [(tokens.segment_BT[b] > 0).sum() for tokens in (batch.inputs.encoder, batch.inputs.decoder)]
            assert lengths == ([len(example(i).prompt), len(example(i).completion)] if i >= 0 else [0, 0])
            assert batch.mask_BT[b].sum() == (example(i).counts.sum() if i >= 0 else 0)


def test_each_side_is_padded_to_its_own_bucket_and_completions_fill_a_batch(data):
    """32 target tokens of a batch: 8, 4, 2 rows of completions of 4, 8, 12, whatever the prompts' length."""
    source = batches(data)
    shapes = {(x.inputs.encoder.ids_BT.shape, x.targets_BT.shape) for x in (source[i] for i in range(source.per_epoch))}
    assert shapes == {((8, 6), (8, 4)), ((4, 9), (4, 8)), ((2, 12), (2, 12))}


def test_long_examples_are_left_out_of_training_only(data):
    source = batches(data, BUCKETS[:1])
    for batch in (source[i] for i in range(source.per_epoch)):
        assert all(len(example(i).prompt) <= 6 and len(example(i).completion) <= 4 for i in batch.inputs.index_B)


lengths_lists = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8)
ascending = st.lists(st.integers(1, 15), min_size=1, max_size=3, unique=True).map(sorted)


@given(lengths_lists, ascending, ascending)
def test_place_and_padded_lengths(lengths, prompts, completions):
    """The first bucket that holds both sides; beyond the last one the fewest whole copies of it that do."""
    buckets = list(map(Bucket, prompts, completions))
    fits = lambda length, bucket: length[0] <= bucket[0] and length[1] <= bucket[1]  # noqa: E731
    places, padded = place(np.asarray(lengths), buckets), padded_lengths(np.asarray(lengths), buckets)
    for length, at, shape in zip(lengths, places, padded.tolist(), strict=True):
        holding = [i for i, bucket in enumerate(buckets) if fits(length, bucket)]
        assert at == (holding[0] if holding else len(buckets))
        if holding:
            assert tuple(shape) == buckets[holding[0]]
        else:
            times = next(n for n in itertools.count(2) if fits(length, [n * size for size in buckets[-1]]))
            assert shape == [times * size for size in buckets[-1]]


def test_long_examples_go_in_batches_of_fewer_rows():
    """One head's float32 scores stay within 256 MiB: 4 of 4096 x 4096; a divisor's multiple, one row at least."""
    assert rows_within(64, 1, Bucket(64, 4096)) == rows_within(64, 1, Bucket(4096, 64)) == 4
    assert rows_within(64, 1, Bucket(8192, 8)) == rows_within(64, 1, Bucket(8, 9000)) == 1
    assert rows_within(64, 3, Bucket(4096, 64)) == 3
    assert rows_within(64, 8, Bucket(8192, 8)) == 8
    assert rows_within(64, 1, Bucket(1024, 1024)) == rows_within(64, 1, Bucket(12, 12)) == 64
    assert rows_within(16, 3, Bucket(12, 12)) == 18


@given(st.integers(1, 128), st.integers(1, 8), st.integers(1, 9000), st.integers(1, 9000))
def test_rows_keep_within_the_bytes_or_are_as_few_as_can_be(batch_size, divisor, prompt, completion):
    rows = rows_within(batch_size, divisor, Bucket(prompt, completion))
    assert rows % divisor == 0 and rows < batch_size + divisor
    assert rows == divisor or 4 * rows * max(prompt, completion) ** 2 <= 256 * 2**20


def test_evaluation_takes_fewer_rows_of_long_examples(data, monkeypatch):
    """Scores of 3 rows of 12 tokens: 3 rows of 12, 5 of 9 (3 x 144 / 81), 12 of 6."""
    monkeypatch.setattr(pipeline, "SCORES_BYTES", 4 * 3 * 12**2)
    plan = EvalBatches(Split(data, "train"), LAYOUT, BUCKETS, 16)
    rows = {batch.inputs.encoder.ids_BT.shape[::-1] for batch in plan}
    assert rows == {(6, 12), (9, 5), (12, 3)}
    assert sorted(np.concatenate([indices for _, indices in plan.plan()])) == list(range(EXAMPLES))


def test_buckets_that_hold_nothing_are_refused(data):
    with pytest.raises(KdError, match="no training example is that short"):
        split = Split(data, "train")
        split.lengths = split.lengths + 100
        TrainBatches(split, LAYOUT, BUCKETS, tokens_per_batch=32, divisor=1, seed=0)
