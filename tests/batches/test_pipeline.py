"""Batches: pure functions of (seed, number); two-sided buckets; packed rows; cache and data in step."""

import itertools

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import buckets as arithmetic
from kd_jax.batches import pipeline, store
from kd_jax.batches.layouts import Bucket, DecoderOnlyLayout, EncoderDecoderLayout
from kd_jax.batches.pipeline import (
    EvalBatches,
    PromptBatches,
    Split,
    TrainBatches,
    example_digest,
    example_lengths,
)
from kd_jax.batches.store import Store
from kd_jax.errors import KdError
from kd_jax.tasks.base import ENCODED, Encoded
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.types import Field

LAYOUT, DECODER_ONLY = EncoderDecoderLayout(START), DecoderOnlyLayout(START)
each_layout = pytest.mark.parametrize("layout", [LAYOUT, DECODER_ONLY], ids=["encoder_decoder", "decoder_only"])
BUCKETS = (Bucket(6, 4), Bucket(9, 8), Bucket(12, 12))
EXAMPLES = 150
SIGNAL = {"value": Field((2,), "float32")} | pipeline.DIGEST


def example(i):
    """Return an example of lengths up to 12; the first i % 3 targets of the completion do not count."""
    rng = np.random.default_rng(i)
    prompt, completion = (rng.integers(4, 50, rng.integers(1, 13)).astype(np.int32) for _ in range(2))
    return Encoded(prompt, completion, np.arange(len(prompt) + len(completion)) >= len(prompt) + i % 3)


def signal_record(i):
    """Return one entry per target that counts: (example, position in the completion)."""
    positions = np.flatnonzero(example(i).counts) - len(example(i).prompt)
    value = np.stack([np.full(len(positions), i), positions], 1).astype(np.float32)
    return {"value": value, "digest": example_digest(example(i))}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = Folder(tmp_path_factory.mktemp("data"), "prepare")
    folder.begin({})
    records = [example(i)._asdict() for i in range(EXAMPLES)]
    store.write(folder.path, "train", ENCODED, EXAMPLES, lambda start, stop: records[start:stop], 64)
    np.save(folder.path / "train.lengths.npy", example_lengths(records))
    store.write(folder.path, "signal", SIGNAL, EXAMPLES, lambda start, stop: map(signal_record, range(start, stop)), 64)
    folder.finish({}, 0.0)
    return folder


def batches(data, buckets=BUCKETS, layout=LAYOUT, **changed):
    options = {"tokens_per_batch": 32, "divisor": 2, "seed": 0, "packed": False} | changed
    return TrainBatches(Split(data, "train", {"s": Store(data.path, "signal")}), layout, buckets, **options)


def examples_of(batch):
    """Return the numbers of the examples in a batch, from their records."""
    return batch.payload["s"]["value"][batch.mask_BT][:, 0].astype(int).tolist()


@pytest.mark.parametrize("packed", [False, True])
@each_layout
def test_epoch_contains_nearly_all_examples_at_most_once(data, layout, packed):
    """Of the examples that have a target that counts."""
    source = batches(data, layout=layout, packed=packed)
    for epoch in range(3):
        seen = sum(
            (examples_of(source[epoch * source.batches_per_epoch + i]) for i in range(source.batches_per_epoch)), []
        )
        assert len(set(seen)) > 0.85 * EXAMPLES
        assert all(seen.count(i) == example(i).counts.sum() for i in set(seen))


def test_rows_contain_their_example_and_its_record(data):
    """Each entry of a record is at its target's position."""
    source = batches(data)
    for batch in (source[i] for i in range(source.batches_per_epoch)):
        encoder, decoder = batch.inputs.encoder, batch.inputs.decoder
        for b, i in enumerate(batch.inputs.index_B):
            expected = example(i)
            assert encoder.ids_BT[b][encoder.segment_BT[b] > 0].tolist() == expected.prompt.tolist()
            assert decoder.ids_BT[b][decoder.segment_BT[b] > 0].tolist() == [START, *expected.completion[:-1]]
            assert batch.targets_BT[b][: len(expected.completion)].tolist() == expected.completion.tolist()
            places = np.flatnonzero(batch.mask_BT[b])
            assert places.tolist() == list(range(i % 3, len(expected.completion)))
            assert batch.payload["s"]["value"][b][places].tolist() == [[i, place] for place in places]


def test_packed_rows_contain_their_examples_and_records(data):
    """Rows of 24 for examples of up to 24 tokens: each segment is one example with its record."""
    source = batches(data, layout=DECODER_ONLY, packed=True, tokens_per_batch=96)
    fullness = []
    for batch in (source[i] for i in range(source.batches_per_epoch)):
        decoder = batch.inputs.decoder
        assert decoder.ids_BT.shape == (4, 24)
        fullness.append((decoder.segment_BT > 0).mean())
        for b, segment_T in enumerate(decoder.segment_BT):
            for number in range(1, segment_T.max() + 1):
                targets, counts = (x_BT[b][segment_T == number] for x_BT in (batch.targets_BT, batch.mask_BT))
                values = batch.payload["s"]["value"][b][segment_T == number][counts]
                if not len(values):
                    continue
                expected = example(int(values[0, 0]))
                assert targets.tolist() == [*expected.prompt, *expected.completion]
                assert counts.tolist() == expected.counts.tolist()
                places = np.flatnonzero(expected.counts) - len(expected.prompt)
                assert values.tolist() == [[values[0, 0], place] for place in places]
    assert np.mean(fullness) > 0.9


@given(st.integers(0, 2**30), st.integers(0, 5), st.booleans())
@settings(max_examples=10, deadline=None)
def test_batch_depends_only_on_seed_and_number(data, number, seed, packed):
    one, other = (batches(data, seed=seed, packed=packed)[number] for _ in range(2))
    chex.assert_trees_all_equal(one, other)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [32, 4000])
def test_plan_equals_plan_from_plain_lists(data, packed, tokens):
    """Each bucket's rows are permuted and cut into batches, too few are repeated; then the batches are permuted."""
    source = batches(data, packed=packed, tokens_per_batch=tokens, seed=3)
    lengths = Split(data, "train").lengths
    bucket_N = arithmetic.assign_buckets(lengths, BUCKETS, LAYOUT)
    rows_of = [[[i] for i in range(EXAMPLES) if bucket_N[i] == b] for b in range(len(BUCKETS))]
    if packed:
        rows_of = [[], [], [row.tolist() for row in arithmetic.pack_rows(lengths, np.asarray(BUCKETS[-1]), 3)]]
    rows_of = [(bucket, rows) for bucket, rows in zip(BUCKETS, rows_of, strict=True) if rows]
    for epoch in range(2):
        expected = []
        for b, (bucket, rows) in enumerate(rows_of):
            count = max(1, tokens // bucket.completion)
            order = np.random.default_rng((3, epoch, b)).permutation(len(rows))
            for start in range(0, max(1, len(rows) // count) * count, count):
                expected.append((bucket, [rows[order[i % len(rows)]] for i in range(start, start + count)]))
        order = np.random.default_rng((3, epoch)).permutation(len(expected))
        plans = [source.plan(epoch * source.batches_per_epoch + i) for i in range(source.batches_per_epoch)]
        assert [(bucket, [row.tolist() for row in rows]) for bucket, rows in plans] == [expected[i] for i in order]


@pytest.mark.parametrize("packed", [False, True])
def test_order_depends_on_seed_and_epoch(data, packed):
    one, two = batches(data, packed=packed), batches(data, seed=1, packed=packed)
    assert any(one[i].inputs.index_B.tolist() != two[i].inputs.index_B.tolist() for i in range(4))
    assert one[0].inputs.index_B.tolist() != one[one.batches_per_epoch].inputs.index_B.tolist()


@pytest.mark.parametrize("hosts, packed", [(2, False), (4, False), (2, True)])
def test_hosts_read_slices_of_the_same_batches(data, hosts, packed):
    whole = batches(data, divisor=4, packed=packed)
    parts = [batches(data, divisor=4, packed=packed, shard=(host, hosts)) for host in range(hosts)]
    for i in (0, 5, 100):
        joined = [(part[i].inputs.index_B, part[i].payload["s"]["value"]) for part in parts]
        expected = whole[i].inputs.index_B, whole[i].payload["s"]["value"]
        chex.assert_trees_all_equal(tuple(map(np.concatenate, zip(*joined, strict=True))), expected)


@pytest.mark.parametrize("packed", [False, True])
def test_batch_has_same_examples_on_any_number_of_devices(data, packed):
    """Empty rows pad a batch, so a run may resume on another number of devices."""
    one = batches(data, divisor=1, packed=packed)
    for devices in (3, 8):
        several = batches(data, divisor=devices, packed=packed)
        assert several.batches_per_epoch == one.batches_per_epoch
        for i in range(one.batches_per_epoch):
            rows, expected = several[i].inputs.index_B, one[i].inputs.index_B
            assert len(rows) % devices == 0 and rows[: len(expected)].tolist() == expected.tolist()
            assert (rows[len(expected) :] == -1).all() and examples_of(several[i]) == examples_of(one[i])


@pytest.mark.parametrize("packed", [False, True])
def test_iterator_resumes_from_saved_state(data, packed):
    def fresh():
        options = {"tokens_per_batch": 32, "divisor": 1, "seed": 0, "packed": packed}
        return iter(TrainBatches(Split(data, "train"), DECODER_ONLY, BUCKETS, **options).prefetch())

    uninterrupted = list(itertools.islice(fresh(), 12))
    first = fresh()
    for _ in range(5):
        next(first)
    state, second = first.get_state(), fresh()
    second.set_state(state)
    for resumed, expected in zip(itertools.islice(second, 7), uninterrupted[5:], strict=True):
        chex.assert_trees_all_equal(resumed, expected)


def test_record_of_other_token_ids_is_rejected(data, tmp_path):
    def shifted(start, stop):
        return (signal_record((i + 1) % EXAMPLES) for i in range(start, stop))

    store.write(tmp_path, "signal", SIGNAL, EXAMPLES, shifted)
    with pytest.raises(KdError, match="expected record 7 to have the digest of example 7"):
        Split(data, "train", {"s": Store(tmp_path, "signal")}).read(7)
    store.write(tmp_path, "short", SIGNAL, 9, shifted)
    with pytest.raises(KdError, match="each of 150 examples of train, got 9 records"):
        Split(data, "train", {"s": Store(tmp_path, "short")})


@pytest.mark.parametrize("side", ["prompt", "completion"])
def test_digest_depends_on_each_token(side):
    ids = example(0)._asdict()[side]
    other = example(0)._replace(**{side: np.where(np.arange(len(ids)) == 0, 51, ids).astype(np.int32)})
    assert example_digest(example(0)).tolist() != example_digest(other).tolist()


def test_digest_depends_on_mask():
    one = Encoded(np.int32([5, 6]), np.int32([7]), np.asarray([False, False, True]))
    other = one._replace(counts=np.asarray([False, True, True]))
    assert example_digest(one).tolist() != example_digest(other).tolist()


def test_digest_depends_on_the_side_of_a_token():
    one, other = (Encoded(np.int32(p), np.int32(c), np.ones(3, bool)) for p, c in (([5, 6], [7]), ([5], [6, 7])))
    assert example_digest(one).tolist() != example_digest(other).tolist()


@each_layout
def test_evaluation_contains_each_example_once_in_full(data, layout):
    source = EvalBatches(Split(data, "train"), layout, BUCKETS[:2], 16, divisor=3)
    indices = np.concatenate([batch.inputs.index_B for batch in source])
    assert sorted(indices[indices >= 0]) == list(range(EXAMPLES))
    for batch, (_, planned) in zip(source, source.plan, strict=True):
        assert batch.inputs.index_B.tolist() == [*planned, *[-1] * (18 - len(planned))]
        for b, i in enumerate(batch.inputs.index_B):
            sides = [tokens for tokens in (batch.inputs.encoder, batch.inputs.decoder) if tokens]
            lengths = [(tokens.segment_BT[b] > 0).sum() for tokens in sides]
            expected = [len(example(i).prompt), len(example(i).completion)] if i >= 0 else [0, 0]
            assert lengths == (expected if len(sides) == 2 else [sum(expected)])
            assert batch.mask_BT[b].sum() == (example(i).counts.sum() if i >= 0 else 0)


@each_layout
def test_prompt_batches_contain_each_prompt_once_in_its_width(layout):
    """Widths 6 and 9, and 18 for a prompt of 10 to 12 tokens; numbers from 100."""
    prompts, numbers = [example(i).prompt for i in range(40)], [100 + i for i in range(40)]
    source = PromptBatches(prompts, layout, (6, 9), 4, divisor=3, indices=numbers)
    assert sorted(n for _, planned in source.plan for n in planned.tolist()) == numbers
    for (width, planned), inputs in zip(source.plan, source, strict=True):
        tokens = inputs.encoder or inputs.decoder
        assert inputs.index_B.tolist() == [*planned, *[-1] * (6 - len(planned))]
        assert tokens.ids_BT.shape == (6, width if inputs.encoder else width + 1)
        for b, number in enumerate(planned):
            prompt = prompts[number - 100].tolist()
            assert width == next(w for w in (6, 9, 18) if len(prompt) <= w)
            ids = tokens.ids_BT[b][tokens.segment_BT[b] > 0].tolist()
            assert ids == (prompt if inputs.encoder else [START, *prompt])


def test_sides_are_padded_separately_and_batches_hold_equal_target_tokens(data):
    """32 target tokens of a batch: 8, 4, 2 rows of completions of 4, 8, 12, whatever the prompts' length."""
    source = batches(data)
    shapes = {
        (x.inputs.encoder.ids_BT.shape, x.targets_BT.shape)
        for x in (source[i] for i in range(source.batches_per_epoch))
    }
    assert shapes == {((8, 6), (8, 4)), ((4, 9), (4, 8)), ((2, 12), (2, 12))}


def test_training_skips_long_examples(data):
    source = batches(data, BUCKETS[:1])
    for batch in (source[i] for i in range(source.batches_per_epoch)):
        assert all(len(example(i).prompt) <= 6 and len(example(i).completion) <= 4 for i in batch.inputs.index_B)


def test_evaluation_batches_of_long_examples_are_smaller(data, monkeypatch):
    """Scores of 3 rows of 12 tokens: 3 rows of 12, 5 of 9 (3 x 144 / 81), 12 of 6."""
    monkeypatch.setattr(arithmetic, "MAX_SCORES_BYTES", 4 * 3 * 12**2)
    plan = EvalBatches(Split(data, "train"), LAYOUT, BUCKETS, 16)
    rows = {batch.inputs.encoder.ids_BT.shape[::-1] for batch in plan}
    assert rows == {(6, 12), (9, 5), (12, 3)}
    assert sorted(np.concatenate([indices for _, indices in plan.plan])) == list(range(EXAMPLES))


def test_buckets_without_an_example_are_rejected(data):
    with pytest.raises(KdError, match="expected a bucket that holds a training example"):
        split = Split(data, "train")
        split.lengths = split.lengths + 100
        TrainBatches(split, LAYOUT, BUCKETS, tokens_per_batch=32, divisor=1, seed=0, packed=False)
