"""On-policy batches: where own texts stand, which examples get one, masks, segments, and the saved position."""

import collections
import itertools
import json

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax import Schedule
from kd_jax.batches.layouts import Bucket, DecoderOnlyLayout, EncoderDecoderLayout
from kd_jax.batches.on_policy import OnPolicy, Slot, draw_own, pack_texts, place, unpack_texts
from kd_jax.batches.pipeline import TrainBatches, TrainPlan
from kd_jax.errors import KdError
from kd_jax.tasks.base import Encoded
from kd_jax.tasks.generation import windows
from kd_jax.tokenizers.sentencepiece import START
from tests.helpers.own_texts import END, ListedSplit, examples_in, own_batches, random_text, take

PREFIX = 3  # a forced token
LAYOUTS = {"encoder_decoder": EncoderDecoderLayout, "decoder_only": DecoderOnlyLayout}
each_layout = pytest.mark.parametrize("layout", [make(START) for make in LAYOUTS.values()], ids=LAYOUTS)
each_packing = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
BUCKETS = (Bucket(6, 4), Bucket(9, 8), Bucket(12, 12))


def example(i):
    """Return an example of prompts and completions of up to 12 tokens, all of which counts."""
    rng = np.random.default_rng(1000 + i)
    prompt, completion = (rng.integers(4, 50, rng.integers(1, 13)).astype(np.int32) for _ in range(2))
    return Encoded(prompt, completion, np.arange(len(prompt) + len(completion)) >= len(prompt))


EXAMPLES = [example(i) for i in range(60)]


def short_text(prompt):
    """Return the end alone, which fits into every row."""
    return np.int32([END])


def rooms(layout, bucket):
    return layout.sizes(np.asarray(bucket))


@given(
    st.integers(0, 10**6),
    st.sampled_from(sorted(LAYOUTS)),
    st.booleans(),
    st.integers(1, 40),
    st.integers(8, 60),
    st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_placed_texts_fit_and_none_is_lost(seed, family, packed, count, tokens_per_batch, share):
    """Against random plans of up to 12 batches, which are several epochs of the fewest examples."""
    rng, layout = np.random.default_rng(seed), LAYOUTS[family](START)
    buckets = tuple(Bucket(*sizes) for sizes in np.sort(rng.integers(2, 30, (rng.integers(1, 4), 2)), axis=0).tolist())
    if len(set(map(lambda bucket: tuple(rooms(layout, bucket)), buckets))) < len(buckets):
        buckets = buckets[-1:]
    lengths_N2 = np.stack([rng.integers(1, np.add(buckets[-1], 1)) for _ in range(count)])
    plan = TrainPlan(lengths_N2, layout, buckets, tokens_per_batch=tokens_per_batch, packed=packed, seed=seed)
    text, planned, own = itertools.count(), [], {}
    for n in range(rng.integers(1, 13)):
        bucket, rows = plan.plan(n)
        slots = [[Slot(int(i), next(text) if rng.random() < share else -1) for i in row] for row in rows]
        planned.append((bucket, slots))
        own |= {slot.text: int(rng.integers(1, buckets[-1].completion + 1)) for row in slots for slot in row}

    def lengths_of(slot):
        prompt, completion = lengths_N2[slot.example]
        return np.array([prompt, completion if slot.text < 0 else own[slot.text]])

    def fits(slots, bucket):
        return (sum(layout.sizes(lengths_of(slot)) for slot in slots) <= rooms(layout, bucket)).all()

    placed = place(planned, lengths_of, layout, buckets, plan.batch_rows, seed if packed else None)
    slots_of = lambda batches: collections.Counter(slot for _, rows in batches for row in rows for slot in row)  # noqa: E731
    assert slots_of(placed) == slots_of(planned)
    for bucket, rows in placed:
        assert bucket in buckets and 1 <= len(rows) <= plan.batch_rows(bucket)
        for row in rows:
            assert row and fits(row, bucket) and (packed or len(row) == 1)
            targets = [slot.example for slot in row if slot.text < 0]
            assert len(set(targets)) == len(targets)  # copies would have one segment, and attend to each other
    if all(fits(row, bucket) for bucket, rows in planned for row in rows):
        assert placed == planned
    if not packed:
        expected = collections.Counter(
            (row[0], bucket if fits(row, bucket) else next(longer for longer in buckets if fits(row, longer)))
            for bucket, rows in planned
            for row in rows
        )
        assert collections.Counter((row[0], bucket) for bucket, rows in placed for row in rows) == expected


@each_layout
def test_copies_of_an_example_never_share_a_segment_of_a_packed_row(layout):
    """Three short examples fill a pool of 40 batches; longer texts bring copies into one row."""
    completion = np.int32([9, END])
    examples = [Encoded(np.int32([i, i]), completion, np.arange(4) >= 2) for i in (5, 6, 7)]
    options, shared = {"packed": True, "tokens_per_batch": 48}, 0
    batches = own_batches(examples, OnPolicy(share=0.6, pool=40), layout, BUCKETS[2:], **options)
    for batch, _ in take(batches, 60, random_text):
        for b in range(len(batch.mask_BT)):
            row = jax.tree.map(lambda x, b=b: x[b : b + 1], batch)
            tokens = row.inputs.decoder
            starts = tokens.segment_BT[(tokens.segment_BT > 0) & (tokens.position_BT == 0)].tolist()
            assert len(set(starts)) == len(starts)
            prompts = [(one.prompt + one.targets)[0] for one in examples_in(row)]
            shared += len(set(prompts)) < len(prompts)
    assert shared


@each_layout
@each_packing
def test_share_0_has_the_batches_of_training_on_the_targets(layout, packed):
    options = {"tokens_per_batch": 32, "packed": packed, "seed": 5}
    expected = TrainBatches(ListedSplit(EXAMPLES), layout, BUCKETS, divisor=4, **options)
    batches = own_batches(EXAMPLES, OnPolicy(share=0.0, pool=7), layout, BUCKETS, divisor=4, **options)
    for i, (batch, prompts) in enumerate(take(batches, 20, random_text)):
        assert not prompts and not batch.own_BT.any()
        chex.assert_trees_all_equal(batch._replace(own_BT=None), expected[i])


def expected_rows(layout, prompts, text, count):
    """Return segment -> (prompt, inputs, targets, counts) of own texts as the documentation of Batch has them."""
    rows = {}
    for prompt in prompts:
        ids, written = prompt.ids.tolist(), text(prompt).tolist()
        given = [*layout.forced_prefix] if isinstance(layout, EncoderDecoderLayout) else [*ids, *layout.forced_prefix]
        targets = [*given, *written]
        counts = [False] * len(given) + [True] * len(written)
        encoder = ids if isinstance(layout, EncoderDecoderLayout) else []
        rows[1 + count + prompt.number] = (encoder, [START, *targets[:-1]], targets, counts)
    return rows


@pytest.mark.parametrize("prefix", [(), (PREFIX,)], ids=["", "prefix"])
@pytest.mark.parametrize("family", LAYOUTS)
@each_packing
def test_share_1_trains_on_the_own_text_of_each_planned_example(family, packed, prefix):
    """The text counts whole, to its end; prompt and forced prefix do not count. Long texts move, none is dropped."""
    layout, options = LAYOUTS[family](START, prefix), {"packed": packed, "tokens_per_batch": 32}
    # As in prepared data the forced prefix begins each reference.
    examples = [
        Encoded(one.prompt, np.int32([*prefix, *one.completion]), np.concatenate([[False] * len(prefix), one.counts]))
        for one in EXAMPLES
        if len(one.completion) < 12
    ]
    batches = own_batches(examples, OnPolicy(share=1.0, pool=10), layout, BUCKETS, **options)
    plan = TrainPlan(ListedSplit(examples).lengths, layout, BUCKETS, seed=0, **options)
    found, expected, prompts, moved = {}, {}, [], 0
    for batch, pool in take(batches, 30, random_text):
        expected |= expected_rows(layout, pool, random_text, len(examples))
        prompts = pool if pool not in prompts else prompts
        rows = examples_in(batch)
        assert all(row.own for row in rows) and not batch.mask_BT[~batch.own_BT].any()
        found |= {row.segment: (row.prompt, row.inputs, row.targets, row.counts) for row in rows}
    assert batches.is_empty or len(found) < len(expected)
    for segment, row in found.items():
        assert row == expected[segment]
    # Of the first pool nothing is missing, and its prompts are those of the plan, in order.
    first = own_batches(examples, OnPolicy(share=1.0, pool=10), layout, BUCKETS, **options)
    prompts = first.begin(0)
    planned = [(plan.plan(n)[0], i) for n in range(10) for row in plan.plan(n)[1] for i in row]
    assert [prompt.ids.tolist() for prompt in prompts] == [examples[i].prompt.tolist() for _, i in planned]
    assert set(found) >= {1 + len(examples) + n for n in range(len(prompts))}
    for prompt, (bucket, _) in zip(prompts, planned, strict=True):
        size = np.array([len(prompt.ids), len(prefix) + len(random_text(prompt))])
        moved += not (layout.sizes(size) <= rooms(layout, bucket)).all()
        largest = np.array([len(prompt.ids), len(prefix) + prompt.room])
        assert (layout.sizes(largest) <= rooms(layout, BUCKETS[-1])).all()
        assert not (layout.sizes(largest + [0, 1]) <= rooms(layout, BUCKETS[-1])).all()  # the most that fits
    assert moved or packed


def test_texts_that_fill_their_room_have_no_end_and_count_whole():
    full = lambda prompt: np.full(prompt.room, 7, np.int32)  # noqa: E731
    for make in LAYOUTS.values():
        batches = own_batches(EXAMPLES, OnPolicy(share=1.0, pool=4), make(START), BUCKETS)
        for batch, prompts in take(batches, 4, full):
            rooms_of = {1 + len(EXAMPLES) + prompt.number: prompt.room for prompt in prompts}
            for row in examples_in(batch):
                counted = [target for target, counts in zip(row.targets, row.counts, strict=True) if counts]
                assert counted == [7] * rooms_of[row.segment]


@each_layout
def test_length_bounds_the_room(layout):
    batches = own_batches(EXAMPLES, OnPolicy(share=1.0, pool=5, length=5), layout, BUCKETS)
    assert {prompt.room for prompt in batches.begin(0)} == {5}


def test_half_of_the_examples_get_an_own_text_at_share_one_half():
    batches = own_batches(EXAMPLES, OnPolicy(share=0.5, pool=50), EncoderDecoderLayout(START), BUCKETS)
    own = [row.own for batch, _ in take(batches, 200, short_text) for row in examples_in(batch)]
    assert len(own) > 500
    assert abs(np.mean(own) - 0.5) < 4 * 0.5 / np.sqrt(len(own))


@pytest.mark.parametrize("pool", [1, 3, 4, 20])
def test_share_follows_a_schedule_at_the_number_of_the_update(pool):
    """0 at the updates 0 to 3, 1 from update 4 on, counted from 0."""
    rule = OnPolicy(share=Schedule(0.0, 1.0, steps=1, begin=3), pool=pool)
    batches = own_batches(EXAMPLES, rule, EncoderDecoderLayout(START), BUCKETS)
    own = [{row.own for row in examples_in(batch)} for batch, _ in take(batches, 10, short_text)]
    assert own == [{False}] * 4 + [{True}] * 6


def test_a_larger_share_adds_own_texts_and_removes_none():
    own = []
    for share in (0.3, 0.7):
        batches = own_batches(EXAMPLES, OnPolicy(share=share, pool=6), EncoderDecoderLayout(START), BUCKETS)
        own.append(np.concatenate([batch.own_BT[:, 0] for batch, _ in take(batches, 40, short_text)]))
    assert (own[0] <= own[1]).all() and own[0].any() and (own[0] != own[1]).any()


def test_which_examples_get_an_own_text_depends_on_seed_and_batch():
    masks = {(seed, batch): draw_own(seed, batch, 64, 0.5).tolist() for seed in range(3) for batch in range(3)}
    assert len({tuple(mask) for mask in masks.values()}) == 9
    assert draw_own(1, 2, 64, 0.5).tolist() == masks[1, 2]


def test_each_visit_of_a_prompt_has_a_number_of_its_own():
    """The draws depend on it, so a second visit does not repeat the first text."""
    batches = own_batches(EXAMPLES[:5], OnPolicy(share=1.0, pool=9), EncoderDecoderLayout(START), BUCKETS)
    pools = [prompts for _, prompts in take(batches, 40, random_text)]
    unique = [pool for pool, _ in itertools.groupby(pools)]
    numbers = [prompt.number for pool in unique for prompt in pool]
    assert len(unique) > 2 and numbers == list(range(len(numbers)))
    assert len({tuple(prompt.ids) for pool in unique for prompt in pool}) <= 5


STOPS = [0, 3, 6, 7, 16]


@pytest.mark.parametrize("taken", STOPS)
@pytest.mark.parametrize("family, packed", [("encoder_decoder", False), ("decoder_only", True)])
def test_batches_continue_from_a_saved_position(family, packed, taken):
    """At the start, within a pool, at its end, after it and later; a stop while texts are written begins them again."""
    make = lambda: own_batches(  # noqa: E731
        EXAMPLES, OnPolicy(share=0.7, pool=6), LAYOUTS[family](START), BUCKETS, packed=packed, tokens_per_batch=48
    )
    first, second, while_writing = make(), make(), make()
    for _ in take(first, taken, random_text):
        pass
    state = json.loads(json.dumps(first.get_state()))
    following = [batch for batch, _ in take(first, 20, random_text, first=taken)]
    second.set_state(state)
    assert json.loads(json.dumps(second.get_state())) == state
    chex.assert_trees_all_equal([batch for batch, _ in take(second, 20, random_text, first=taken)], following)
    while_writing.set_state(state)
    rest = [batch for batch, _ in take(while_writing, 0, random_text)]
    step = taken
    while not while_writing.is_empty:
        rest.append(next(while_writing))
        step += 1
    while_writing.begin(step)
    third = make()
    third.set_state(json.loads(json.dumps(while_writing.get_state())))
    rest += [batch for batch, _ in take(third, 20 - len(rest), random_text, first=step)]
    chex.assert_trees_all_equal(rest, following)


def test_pools_end_where_stops_are_tested():
    """A pool of six planned batches may have more. Stops are within a pool and at its end."""
    rule, layout = OnPolicy(share=0.7, pool=6), EncoderDecoderLayout(START)
    batches = own_batches(EXAMPLES, rule, layout, BUCKETS, tokens_per_batch=48)
    ends = [step + 1 for step, _ in enumerate(take(batches, 17, random_text)) if batches.is_empty]
    assert any(stop in ends for stop in STOPS) and any(stop not in ends for stop in STOPS[1:])


@each_packing
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_slices_of_the_same_batches(hosts, packed):
    make = lambda **shard: own_batches(  # noqa: E731
        EXAMPLES, OnPolicy(share=0.6, pool=5), DecoderOnlyLayout(START), BUCKETS, packed=packed, divisor=4, **shard
    )
    whole = [batch for batch, _ in take(make(), 12, random_text)]
    parts = [[batch for batch, _ in take(make(shard=(host, hosts)), 12, random_text)] for host in range(hosts)]
    fields = lambda batch: (batch.inputs.decoder.ids_BT, batch.mask_BT, batch.own_BT, batch.inputs.index_B)  # noqa: E731
    for i, batch in enumerate(whole):
        joined = tuple(map(np.concatenate, zip(*(fields(part[i]) for part in parts), strict=True)))
        chex.assert_trees_all_equal(joined, fields(batch))


@each_layout
@each_packing
def test_batches_have_the_same_examples_on_any_number_of_devices(layout, packed):
    make = lambda divisor: own_batches(  # noqa: E731
        EXAMPLES, OnPolicy(share=0.6, pool=5), layout, BUCKETS, packed=packed, divisor=divisor
    )
    one, eight = ([batch for batch, _ in take(make(divisor), 12, random_text)] for divisor in (1, 8))
    for batch, padded in zip(one, eight, strict=True):
        assert len(padded.mask_BT) % 8 == 0 and examples_in(padded) == examples_in(batch)


@each_layout
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_examples_without_a_target_always_get_an_own_text(layout, share):
    """Even if they have a completion, as training examples without a share of the references do."""
    with_target, without = EXAMPLES[:20], EXAMPLES[20:40]
    batches = own_batches(with_target, OnPolicy(share=share, pool=8), layout, BUCKETS, without=without)
    hidden = {(tuple(one.prompt), tuple(one.completion)) for one in without}
    shown = {(tuple(one.prompt), tuple(one.completion)) for one in with_target}
    prompts_without = {tuple(one.prompt) for one in without}
    own = 0
    for batch, prompts in take(batches, 60, random_text):
        assert share or {tuple(prompt.ids) for prompt in prompts} <= prompts_without
        for row in examples_in(batch):
            if row.own:
                own += 1
                assert row.segment > 40
            else:
                length = len(with_target[row.segment - 1].prompt)
                ids = row.prompt + row.targets
                assert (tuple(ids[:length]), tuple(ids[length:])) in shown - hidden
    assert own > 20


@each_layout
def test_an_example_whose_prompt_is_too_long_to_continue_keeps_its_target(layout):
    batches = own_batches(EXAMPLES, OnPolicy(share=1.0, pool=8), layout, BUCKETS, max_prompt=5)
    kept = 0
    for batch, prompts in take(batches, 16, random_text):
        assert max(len(prompt.ids) for prompt in prompts) <= 5
        for row in examples_in(batch):
            if not row.own:
                kept += 1
                expected = EXAMPLES[row.segment - 1]
                assert len(expected.prompt) > 5
                assert row.prompt + row.targets == [*expected.prompt, *expected.completion]
    assert kept


@each_packing
def test_without_prompts_the_beginning_of_a_document_is_given(packed):
    """Of windows too, whose context is their beginning. One token of a short document is left to write."""
    rng, layout = np.random.default_rng(0), DecoderOnlyLayout(START)
    documents = [rng.integers(4, 50, n).astype(np.int32) for n in (2, 3, 4, 5, 9, 12, 13, 31, 40) * 3]
    examples = [window for ids in documents for window in windows(ids, 12, 4)]
    assert any(len(one.prompt) for one in examples) and min(len(one.completion) for one in examples) == 1
    rule, buckets = OnPolicy(share=1.0, pool=10, beginning=4), (Bucket(0, 6), Bucket(0, 12))
    batches = own_batches(examples, rule, layout, buckets, prompted=False, packed=packed)
    beginnings = set()
    for one in examples:
        ids = [*one.prompt.tolist(), *one.completion.tolist()]
        beginnings.add(tuple(ids[: min(4, len(ids) - 1)]))
    seen = set()
    for batch, prompts in take(batches, 30, random_text):
        assert {tuple(prompt.ids.tolist()) for prompt in prompts} <= beginnings
        assert all(len(prompt.ids) + prompt.room == 12 for prompt in prompts)
        expected = expected_rows(layout, prompts, random_text, len(examples))
        for row in examples_in(batch):
            assert row.own and (row.prompt, row.inputs, row.targets, row.counts) == expected[row.segment]
        seen |= {tuple(prompt.ids.tolist()) for prompt in prompts}
    assert {1, 2, 3, 4} == set(map(len, seen))


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=5))
def test_packed_texts_are_unpacked(texts):
    packed = json.loads(json.dumps(pack_texts([np.asarray(text, np.int32) for text in texts])))
    assert [text.tolist() for text in unpack_texts(packed)] == texts


@pytest.mark.parametrize(
    "change, message",
    [
        ({"share": -0.1}, r"targets.share: expected a number in \[0, 1\] or a Schedule, got -0.1"),
        ({"share": float("nan")}, "targets.share: .* got nan"),
        ({"share": True}, "targets.share: .* got True"),
        ({"share": Schedule(0.5, 1.5, steps=10)}, r"targets.share.end: expected a number in \[0, 1\], got 1.5"),
        ({"share": Schedule(-0.5, 1.0, steps=10)}, r"targets.share.start: .* got -0.5"),
        ({"share": lambda step: 2.0}, r"targets.share: expected a finite number in \[0, 1\], got 2.0 at step 0"),
        ({"temperature": -1.0}, "targets.temperature: .* got -1.0"),
        ({"top_p": 0.0}, "targets.top_p: .* got 0.0"),
        ({"pool": 0}, "targets.pool: expected an integer in .* got 0"),
        ({"length": -1}, "targets.length: .* got -1"),
        ({"beginning": 1.5}, "targets.beginning: .* got 1.5"),
        ({"max_cut": 1.5}, "targets.max_cut: .* got 1.5"),
        ({"min_distinct": -0.5}, "targets.min_distinct: .* got -0.5"),
    ],
)
def test_a_field_out_of_its_range_is_refused(change, message):
    with pytest.raises(KdError, match=f"^{message}"):
        OnPolicy(**change).check()
