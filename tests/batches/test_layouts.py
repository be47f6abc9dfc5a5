"""Layouts of both families: padded rows, packed rows, segments, masks, payloads and prompts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.batches.layouts import Bucket, DecoderOnlyLayout, EncoderDecoderLayout, Segment
from kd_jax.tasks.base import Encoded
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.types import Field

SCHEMAS = {"s": {"value": Field((2,), "float32"), "ids": Field((), "uint16")}}
LAYOUTS = {"encoder_decoder": EncoderDecoderLayout(START), "decoder_only": DecoderOnlyLayout(START)}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def encoded(prompt, completion, counts=None):
    """Return an example; `counts` is of the completion, None where all of it counts."""
    counts = np.ones(len(completion), bool) if counts is None else np.asarray(counts, bool)
    whole = np.concatenate([np.zeros(len(prompt), bool), counts])
    return Encoded(np.asarray(prompt, np.int32), np.asarray(completion, np.int32), whole)


def segment(index, prompt, completion, weight=1.0):
    """Return a segment without records."""
    return Segment(index, encoded(prompt, completion), weight, {})


LONG, SHORT = segment(5, [7, 8, 9, 2], [6, 2]), segment(3, [4, 2], [5, 6, 2], weight=0.5)


def test_encoder_decoder_pads_each_side():
    """A long prompt with a short completion, a weight, and an empty row, against arrays written by hand."""
    batch = EncoderDecoderLayout(START).batch([[LONG], [SHORT]], 3, Bucket(5, 3), {})
    decoder, encoder = batch.inputs.decoder, batch.inputs.encoder
    assert batch.inputs.index_B.tolist() == [5, 3, -1]
    assert encoder.ids_BT.tolist() == [[7, 8, 9, 2, 0], [4, 2, 0, 0, 0], [0] * 5]
    assert encoder.position_BT.tolist() == [[0, 1, 2, 3, 0], [0, 1, 0, 0, 0], [0] * 5]
    assert encoder.segment_BT.tolist() == [[6, 6, 6, 6, 0], [4, 4, 0, 0, 0], [0] * 5]  # of examples 5 and 3
    assert decoder.ids_BT.tolist() == [[START, 6, 0], [START, 5, 6], [0] * 3]
    assert decoder.position_BT.tolist() == [[0, 1, 0], [0, 1, 2], [0] * 3]
    assert decoder.segment_BT.tolist() == [[6, 6, 0], [4, 4, 4], [0] * 3]
    assert batch.targets_BT.tolist() == [[6, 2, 0], [5, 6, 2], [0] * 3]
    assert batch.mask_BT.tolist() == [[True, True, False], [True] * 3, [False] * 3]
    assert batch.weight_BT[:2].tolist() == [[1.0] * 3, [0.5] * 3]
    assert batch.payload == {}


def test_decoder_only_concatenates_prompt_and_completion():
    """The completion starts after its own prompt, not after the padded prompt; the prompt does not count."""
    batch = DecoderOnlyLayout(START).batch([[LONG], [SHORT]], 3, Bucket(4, 3), {})
    decoder = batch.inputs.decoder
    assert batch.inputs.encoder is None and batch.inputs.index_B.tolist() == [5, 3, -1]
    assert decoder.ids_BT.tolist() == [[START, 7, 8, 9, 2, 6, 0], [START, 4, 2, 5, 6, 0, 0], [0] * 7]
    assert decoder.position_BT.tolist() == [[0, 1, 2, 3, 4, 5, 0], [0, 1, 2, 3, 4, 0, 0], [0] * 7]
    assert decoder.segment_BT.tolist() == [[6] * 6 + [0], [4] * 5 + [0] * 2, [0] * 7]
    assert batch.targets_BT.tolist() == [[7, 8, 9, 2, 6, 2, 0], [4, 2, 5, 6, 2, 0, 0], [0] * 7]
    assert batch.mask_BT.astype(int).tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0], [0] * 7]
    assert batch.weight_BT[1].tolist() == [0.5] * 5 + [1.0] * 2


def test_packed_row_restarts_with_each_example():
    """Start token, positions, segment and weight restart; the row has its first example's number."""
    batch = DecoderOnlyLayout(START).batch([[SHORT, LONG]], 1, Bucket(6, 6), {})
    decoder = batch.inputs.decoder
    assert batch.inputs.index_B.tolist() == [3]
    assert decoder.ids_BT.tolist() == [[START, 4, 2, 5, 6, START, 7, 8, 9, 2, 6, 0]]
    assert decoder.position_BT.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0]]
    assert decoder.segment_BT.tolist() == [[4] * 5 + [6] * 6 + [0]]
    assert batch.targets_BT.tolist() == [[4, 2, 5, 6, 2, 7, 8, 9, 2, 6, 2, 0]]
    assert batch.weight_BT.tolist() == [[0.5] * 5 + [1.0] * 7]
    both = EncoderDecoderLayout(START).batch([[SHORT, LONG]], 1, Bucket(6, 6), {}).inputs
    assert both.encoder.segment_BT.tolist() == [[4, 4, 6, 6, 6, 6]]
    assert both.decoder.ids_BT.tolist() == [[START, 5, 6, START, 6, 0]]
    assert both.decoder.segment_BT.tolist() == [[4, 4, 4, 6, 6, 0]]


@pytest.mark.parametrize("layout, prompt", [(LAYOUTS["encoder_decoder"], 0), (LAYOUTS["decoder_only"], 2)])
def test_payload_is_at_the_targets_that_count(layout, prompt):
    """A target that does not count is an input of the decoder, and has no entry in the record."""
    example = encoded([7, 2], [3, 4, 5, 6, 2], [False, False, True, False, True])
    record = {"value": np.asarray([[1.0, 2.0], [3.0, 4.0]], np.float32), "ids": np.asarray([8, 9], np.uint16)}
    batch = layout.batch([[Segment(0, example, 1.0, {"s": record})]], 1, Bucket(2, 6), SCHEMAS)
    places = [prompt + 2, prompt + 4]
    assert np.flatnonzero(batch.mask_BT).tolist() == places
    assert (batch.inputs.decoder.segment_BT > 0).sum() == prompt + 5
    assert batch.payload["s"]["ids"][0, places].tolist() == [8, 9] and batch.payload["s"]["ids"].sum() == 17
    assert batch.payload["s"]["value"][0, places].tolist() == record["value"].tolist()
    assert {name: x.dtype.name for name, x in batch.payload["s"].items()} == {"value": "float32", "ids": "uint16"}


def test_prompt_may_count():
    """A decoder-only model predicts a prompt that counts; an encoder-decoder only reads it."""
    example = encoded([7, 8, 2], [5, 2])._replace(counts=np.asarray([True, False, True, True, True]))
    masks = [layout.batch([[Segment(0, example, 1.0, {})]], 1, Bucket(3, 2), {}).mask_BT for layout in LAYOUTS.values()]
    assert [mask_BT.astype(int).tolist() for mask_BT in masks] == [[[1, 1]], [[1, 0, 1, 1, 1]]]


completions = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=6)
examples = st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=4), completions)


@given(st.lists(st.lists(examples, min_size=1, max_size=3), min_size=1, max_size=4), st.sampled_from(sorted(LAYOUTS)))
@settings(max_examples=40, deadline=None)
def test_rows_contain_their_examples(rows, family):
    """Ids may be 0, as padding is: segments and masks alone mark the tokens."""
    segments, index = [], itertools.count()
    for b, row in enumerate(rows):
        segments.append([])
        for prompt, completion in row:
            ids, counts = zip(*completion, strict=True)
            record = {"value": np.full((sum(counts), 2), b, np.float32), "ids": np.arange(sum(counts))}
            segments[-1].append(Segment(next(index), encoded(prompt, ids, counts), 1.0, {"s": record}))
    batch = LAYOUTS[family].batch(segments, len(rows) + 1, Bucket(12, 18), SCHEMAS)
    assert not batch.mask_BT[batch.inputs.decoder.segment_BT == 0].any()
    for b, row in enumerate(segments):
        for one in row:
            number = one.index + 1
            in_segment_T = batch.inputs.decoder.segment_BT[b] == number
            targets, counts = one.encoded.completion, one.encoded.counts[len(one.encoded.prompt) :]
            if family == "encoder_decoder":
                source = batch.inputs.encoder
                assert source.ids_BT[b][source.segment_BT[b] == number].tolist() == one.encoded.prompt.tolist()
            else:
                targets, counts = np.concatenate(one.encoded[:2]), one.encoded.counts
            assert batch.targets_BT[b][in_segment_T].tolist() == targets.tolist()
            assert batch.inputs.decoder.ids_BT[b][in_segment_T].tolist() == [START, *targets[:-1]]
            assert batch.mask_BT[b][in_segment_T].tolist() == counts.tolist()
            payload = batch.payload["s"]["ids"][b][in_segment_T & batch.mask_BT[b]]
            np.testing.assert_array_equal(payload, one.records["s"]["ids"])


def test_encoder_decoder_prompts_equal_start_of_training_rows():
    """The same source, and the start token as the decoder's only input."""
    prompts = [np.asarray([7, 8, 2]), np.asarray([9, 2])]
    inputs = EncoderDecoderLayout(START).prompts(prompts, 3, 4)
    rows = [[segment(0, prompt, [5, 2])] for prompt in prompts]
    trained = EncoderDecoderLayout(START).batch(rows, 3, Bucket(4, 9), {}).inputs
    for part, expected in zip(inputs.encoder, trained.encoder, strict=True):
        np.testing.assert_array_equal(part, expected)
    for part, expected in zip(inputs.decoder, trained.decoder, strict=True):
        np.testing.assert_array_equal(part, expected[:, :1])


def test_decoder_only_prompts_end_in_last_column():
    """Without padding a prompt equals the start of its training row; an empty row is all padding."""
    prompts = [np.asarray([7, 8, 2]), np.asarray([9, 2])]
    inputs = DecoderOnlyLayout(START).prompts(prompts, 3, 4)
    rows = [[segment(0, prompt, [5, 2])] for prompt in prompts]
    trained = DecoderOnlyLayout(START).batch(rows, 3, Bucket(4, 9), {}).inputs
    assert inputs.decoder.segment_BT.tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0] * 5]
    for b, prompt in enumerate(prompts):
        for part, expected in zip(inputs.decoder, trained.decoder, strict=True):
            np.testing.assert_array_equal(part[b, -1 - len(prompt) :], expected[b, : len(prompt) + 1])
