"""Prompts of exported programs equal those of the layouts."""

import jax
import numpy as np
import pytest

from kd_jax.batches.layouts import DecoderOnlyLayout, EncoderDecoderLayout
from kd_jax.decoding.exported import prompts
from kd_jax.tokenizers.sentencepiece import START
from tests.decoding.small_model import SOURCES

PROMPT_LENGTH = 4


@pytest.mark.parametrize("forced_prefix", [(), (9,), (9, 8)])
@pytest.mark.parametrize("layout", [EncoderDecoderLayout, DecoderOnlyLayout])
def test_prompts_equal_those_of_the_layout(layout, forced_prefix):
    expected = layout(START, forced_prefix).prompts(SOURCES, len(SOURCES), PROMPT_LENGTH)
    ids_BS = np.full((len(SOURCES), PROMPT_LENGTH), 7, np.int32)  # ids after a prompt are ignored
    for row, ids in zip(ids_BS, SOURCES, strict=True):
        row[: len(ids)] = ids
    lengths_B = np.array([len(ids) for ids in SOURCES], np.int32)
    ours = prompts(ids_BS, lengths_B, layout is EncoderDecoderLayout, (START, *forced_prefix))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
