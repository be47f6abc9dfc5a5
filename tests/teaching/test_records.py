"""Records of a split are in the examples' order, whatever the order of the batches."""

import numpy as np

from kd_jax.batches.layouts import EncoderDecoderLayout
from kd_jax.batches.pipeline import PromptBatches, example_digest
from kd_jax.runtime import progress
from kd_jax.teaching.records import infer_records
from kd_jax.tokenizers.sentencepiece import START
from tests.teaching.imported.pairs import Pairs


def test_records_are_in_order_with_their_digests():
    pairs, indices = Pairs(), [3, 1, 2]
    prompts = [pairs.read(i).encoded.prompt for i in indices]
    batches = PromptBatches(prompts, EncoderDecoderLayout(START), (2, 3), 2, indices=indices)
    assert len(batches) == 2  # example 1 has a shorter prompt
    with progress.bar("records", len(indices)) as bar:
        records = list(
            infer_records(
                pairs,
                indices,
                batches,
                infer=lambda inputs: {"ids": inputs.encoder.ids_BT},
                to_record=lambda example, b, outputs: {"ids": outputs["ids"][b]},
                bar=bar,
            )
        )
    for i, record in zip(indices, records, strict=True):
        encoded = pairs.read(i).encoded
        assert record["ids"].tolist() == encoded.prompt.tolist()
        np.testing.assert_array_equal(record["digest"], example_digest(encoded))
