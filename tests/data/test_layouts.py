"""Rows: what stands where, each side in its own length, and what exists apart from what counts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.data.layouts import Bucket, EncoderDecoderLayout, Row
from kd_jax.data.tokenizers import START
from kd_jax.tasks.base import Encoded
from kd_jax.types import Field

LAYOUT = EncoderDecoderLayout()
SCHEMAS = {"s": {"value": Field((2,), "float32"), "ids": Field((), "uint16")}}


def encoded(prompt, completion, counts=None):
    counts = np.ones(len(completion), bool) if counts is None else np.asarray(counts)
    return Encoded(np.asarray(prompt, np.int32), np.asarray(completion, np.int32), counts)


def test_prompt_and_completion_are_padded_apart():
    """A long prompt beside a short completion, a weight, and a row that only fills up: all of it by hand."""
    rows = [Row(5, encoded([7, 8, 9, 2], [6, 2]), 1.0, {}), Row(3, encoded([4, 2], [5, 6, 2]), 0.5, {})]
    batch = LAYOUT.batch(rows, 3, Bucket(5, 3), {})
    decoder, encoder = batch.inputs.decoder, batch.inputs.encoder
    assert batch.inputs.index_B.tolist() == [5, 3, -1]
    assert encoder.ids_BT.tolist() == [[7, 8, 9, 2, 0], [4, 2, 0, 0, 0], [0] * 5]
    assert encoder.position_BT.tolist() == [[0, 1, 2, 3, 0], [0, 1, 0, 0, 0], [0] * 5]
    assert encoder.segment_BT.tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0] * 5]
    assert decoder.ids_BT.tolist() == [[START, 6, 0], [START, 5, 6], [0] * 3]
    assert decoder.position_BT.tolist() == [[0, 1, 0], [0, 1, 2], [0] * 3]
    assert decoder.segment_BT.tolist() == [[1, 1, 0], [1, 1, 1], [0] * 3]
    assert batch.targets_BT.tolist() == [[6, 2, 0], [5, 6, 2], [0] * 3]
    assert batch.mask_BT.tolist() == [[True, True, False], [True] * 3, [False] * 3]
    assert batch.weight_BT[:2].tolist() == [[1.0] * 3, [0.5] * 3]
    assert batch.payload == {}


def test_a_record_stands_at_the_targets_that_count():
    """A target that does not count exists and is no less read by the decoder; the record knows nothing of it."""
    example = encoded([7, 2], [3, 4, 5, 6, 2], [False, False, True, False, True])
    record = {"value": np.asarray([[1.0, 2.0], [3.0, 4.0]], np.float32), "ids": np.asarray([8, 9], np.uint16)}
    batch = LAYOUT.batch([Row(0, example, 1.0, {"s": record})], 1, Bucket(2, 6), SCHEMAS)
    assert batch.mask_BT.tolist() == [[False, False, True, False, True, False]]
    assert batch.inputs.decoder.segment_BT.tolist() == [[1] * 5 + [0]]
    assert batch.inputs.decoder.ids_BT.tolist() == [[START, 3, 4, 5, 6, 0]]
    assert batch.payload["s"]["ids"].tolist() == [[0, 0, 8, 0, 9, 0]]
    assert batch.payload["s"]["value"][0, [2, 4]].tolist() == record["value"].tolist()
    assert {name: x.dtype.name for name, x in batch.payload["s"].items()} == {"value": "float32", "ids": "uint16"}


completions = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=6)


@given(st.lists(st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=4), completions), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_rows_give_back_their_examples(examples):
    """Ids may be 0, as a pad's: segments and counts alone say what is there."""
    rows = []
    for i, (prompt, completion) in enumerate(examples):
        ids, counts = zip(*completion, strict=True)
        record = {"value": np.full((sum(counts), 2), i, np.float32), "ids": np.arange(sum(counts))}
        rows.append(Row(i, encoded(prompt, ids, counts), 1.0, {"s": record}))
    batch = LAYOUT.batch(rows, len(rows) + 1, Bucket(4, 6), SCHEMAS)
    for b, row in enumerate(rows):
        there_S, there_T = (tokens.segment_BT[b] > 0 for tokens in (batch.inputs.encoder, batch.inputs.decoder))
        assert batch.inputs.encoder.ids_BT[b][there_S].tolist() == row.encoded.prompt.tolist()
        assert batch.targets_BT[b][there_T].tolist() == row.encoded.completion.tolist()
        assert batch.mask_BT[b][there_T].tolist() == row.encoded.counts.tolist()
        assert not batch.mask_BT[b][~there_T].any()
        np.testing.assert_array_equal(batch.payload["s"]["ids"][b][batch.mask_BT[b]], row.records["s"]["ids"])


def test_decoding_begins_as_training_does():
    prompts = [np.asarray([7, 8, 2]), np.asarray([9, 2])]
    inputs = LAYOUT.prompts(prompts, 3, Bucket(4, 9))
    rows = [Row(i, encoded(prompt, [5, 2]), 1.0, {}) for i, prompt in enumerate(prompts)]
    trained = LAYOUT.batch(rows, 3, Bucket(4, 9), {}).inputs
    for part, want in zip(inputs.encoder, trained.encoder, strict=True):
        np.testing.assert_array_equal(part, want)
    for part, want in zip(inputs.decoder, trained.decoder, strict=True):
        np.testing.assert_array_equal(part, want[:, :1])
