"""Batches: pure functions of (seed, number); trap 9 (cache and data out of step)."""

import itertools

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.data import pipeline, store
from kd_jax.data.pipeline import EvalBatches, Split, TrainBatches, example_digest, padded_lengths, train_batches
from kd_jax.data.store import Store
from kd_jax.errors import KdError
from kd_jax.tasks.translation import Translation
from kd_jax.types import Field

BUCKETS = (4, 8, 12)
EXAMPLES = 150
SIGNAL = {"value": Field((2,), "float32")} | pipeline.DIGEST


def example(i):
    rng = np.random.default_rng(i)
    source, target = (rng.integers(4, 50, rng.integers(1, 13)).astype(np.int32) for _ in range(2))
    return {"source": source, "target": target, "mask": np.ones(len(target), bool)}


def signal_record(i):
    return {"value": np.full((len(example(i)["target"]), 2), i, np.float32), "digest": example_digest(example(i))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    store.write(path, "train", Translation().schema(), EXAMPLES, lambda a, b: map(example, range(a, b)), 64)
    lengths = [max(len(example(i)["source"]), len(example(i)["target"])) for i in range(EXAMPLES)]
    np.save(path / "train.lengths.npy", np.asarray(lengths, np.int32))
    store.write(path, "signal", SIGNAL, EXAMPLES, lambda a, b: map(signal_record, range(a, b)), 64)
    return path


def batches(folder, **changed):
    arguments = {"tokens_per_batch": 32, "divisor": 2, "seed": 0, "shard_index": 0, "shard_count": 1} | changed
    return TrainBatches(Split(folder, "train", {"s": Store(folder, "signal")}), BUCKETS, *arguments.values())


def test_an_example_is_met_at_most_once_in_an_epoch_and_nearly_all_are(folder):
    source = batches(folder)
    for epoch in range(3):
        seen = np.concatenate([source[epoch * source.per_epoch + i].index_B for i in range(source.per_epoch)])
        assert len(set(seen)) == len(seen) > 0.9 * EXAMPLES


def test_rows_hold_their_example_and_its_record(folder):
    batch = batches(folder)[3]
    for row, i in enumerate(batch.index_B):
        want = example(i)
        assert batch.targets_BT[row][batch.mask_BT[row]].tolist() == want["target"].tolist()
        assert batch.source_BS[row][batch.source_mask_BS[row]].tolist() == want["source"].tolist()
        assert batch.inputs_BT[row, 0] == 1
        assert batch.inputs_BT[row, 1 : len(want["target"])].tolist() == want["target"][:-1].tolist()
        assert (batch.payload["s"]["value"][row][batch.mask_BT[row]] == i).all()


@given(st.integers(0, 2**30), st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_a_batch_depends_on_seed_and_number_alone(folder, number, seed):
    chex.assert_trees_all_equal(batches(folder, seed=seed)[number], batches(folder, seed=seed)[number])


def test_other_seeds_and_epochs_have_other_orders(folder):
    one, two = batches(folder), batches(folder, seed=1)
    assert any(one[i].index_B.tolist() != two[i].index_B.tolist() for i in range(4))
    assert one[0].index_B.tolist() != one[one.per_epoch].index_B.tolist()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_slices_of_the_same_batches(folder, hosts):
    whole = batches(folder, divisor=4)
    parts = [batches(folder, divisor=4, shard_index=h, shard_count=hosts) for h in range(hosts)]
    for i in (0, 5, 100):
        joined = [part[i] for part in parts]
        chex.assert_trees_all_equal(np.concatenate([part.index_B for part in joined]), whole[i].index_B)
        chex.assert_trees_all_equal(
            np.concatenate([part.payload["s"]["value"] for part in joined]), whole[i].payload["s"]["value"]
        )


def test_an_iterator_goes_on_where_its_state_was_saved(folder):
    def fresh():
        split = Split(folder, "train")
        return iter(train_batches(split, buckets=BUCKETS, tokens_per_batch=32, divisor=1, seed=0))

    never_stopped = list(itertools.islice(fresh(), 12))
    first = fresh()
    for _ in range(5):
        next(first)
    state, second = first.get_state(), fresh()
    second.set_state(state)
    for got, want in zip(itertools.islice(second, 7), never_stopped[5:], strict=True):
        chex.assert_trees_all_equal(got, want)


def test_a_record_of_other_token_ids_is_refused(folder, tmp_path):
    def shifted(a, b):
        return (signal_record((i + 1) % EXAMPLES) for i in range(a, b))

    store.write(tmp_path, "signal", SIGNAL, EXAMPLES, shifted)
    with pytest.raises(KdError, match="other token ids"):
        Split(folder, "train", {"s": Store(tmp_path, "signal")}).read(7)
    store.write(tmp_path, "short", SIGNAL, 9, shifted)
    with pytest.raises(KdError, match="9 records for 150"):
        Split(folder, "train", {"s": Store(tmp_path, "short")})


def test_one_flipped_token_changes_the_digest():
    one = example(0)
    other = one | {"target": np.where(np.arange(len(one["target"])) == 0, 51, one["target"]).astype(np.int32)}
    assert example_digest(one).tolist() != example_digest(other).tolist()


def test_evaluation_meets_every_example_once_and_cuts_none(folder):
    plan = EvalBatches(Split(folder, "train"), (4, 8), 16, divisor=3)
    indices = np.concatenate([batch.index_B for batch in plan])
    assert sorted(indices[indices >= 0]) == list(range(EXAMPLES))
    for batch in plan:
        assert len(batch.index_B) == 18
        for row, i in enumerate(batch.index_B):
            assert batch.mask_BT[row].sum() == (len(example(i)["target"]) if i >= 0 else 0)


def test_long_examples_are_left_out_of_training_only(folder):
    source = TrainBatches(Split(folder, "train"), (4,), 32, 1, 0, 0, 1)
    assert all(source[i].targets_BT.shape[1] == 4 for i in range(source.per_epoch))
    assert padded_lengths(np.asarray([1, 4, 5, 9]), (4, 8)).tolist() == [4, 4, 8, 16]


def test_buckets_that_hold_nothing_are_refused(folder):
    split = Split(folder, "train")
    split.lengths = split.lengths + 100
    with pytest.raises(KdError, match="no training example is that short"):
        TrainBatches(split, BUCKETS, 32, 1, 0, 0, 1)
