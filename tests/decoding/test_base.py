"""Prompts, forced prefixes and suppressed tokens: identities with the teacher-forced model, in both families."""

import jax
import numpy as np
import pytest

from kd_jax.batches.layouts import DecoderOnlyLayout, EncoderDecoderLayout
from kd_jax.decoding.base import last_prompt_tokens, suppress
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.sampling import sample
from kd_jax.tasks.base import Sampling
from kd_jax.tokenizers.sentencepiece import START
from tests.decoding import small_model, test_decoder_only
from tests.decoding.small_model import ENDS, EOS, LENGTH, SOURCES, V

PREFIX = (4, 5)
SUPPRESSED = [v for v in range(V) if v not in (EOS, 3)]
FAMILIES = {
    "encoder_decoder": (
        small_model.MODEL,
        small_model.PARAMS,
        EncoderDecoderLayout,
        lambda s, ids: small_model.logits_of(s, [ids])[0],
    ),
    "decoder_only": (
        test_decoder_only.MODEL,
        test_decoder_only.PARAMS,
        DecoderOnlyLayout,
        test_decoder_only.logits_of,
    ),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def up_to_end(ids_T):
    ids = np.asarray(ids_T).tolist()
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


@each_family
def test_texts_continue_after_the_forced_prefix(family):
    model, params, layout, logits_of = family
    written = greedy(model, params, layout(START, PREFIX).prompts(SOURCES, 5, 4), **ENDS)
    for source, ids_T in zip(SOURCES, written, strict=False):
        text = [*PREFIX, *up_to_end(ids_T)]
        assert text[2:] == logits_of(source, text).argmax(-1).tolist()[2:]


@each_family
def test_suppressed_tokens_are_not_written_and_have_no_probability(family):
    model, params, layout, logits_of = family
    inputs, suppressed = layout(START).prompts(SOURCES, 5, 4), suppress(model, tuple(SUPPRESSED))
    tokens = [
        greedy(suppressed, params, inputs, **ENDS),
        sample(suppressed, params, inputs, sampling=Sampling(1.0), **ENDS),
    ]
    output = jax.device_get(beam_search(suppressed, params, inputs, beam=2, alpha=0.0, **ENDS))
    assert not set(SUPPRESSED) & {int(i) for ids in (*tokens, output.ids_BKT) for i in np.ravel(ids)}
    for source, ids_KT, logp_K in zip(SOURCES, output.ids_BKT, output.logp_BK, strict=False):
        text = up_to_end(ids_KT[0])
        logits_TV = np.array(logits_of(source, text))
        logits_TV[:, SUPPRESSED] = -np.inf
        logp_TV = np.asarray(jax.nn.log_softmax(logits_TV))
        np.testing.assert_allclose(logp_K[0], logp_TV[np.arange(len(text)), text].sum(), rtol=1e-4)


def test_the_length_does_not_include_the_forced_prefix():
    assert greedy(
        small_model.MODEL, small_model.PARAMS, EncoderDecoderLayout(START, PREFIX).prompts(SOURCES, 5, 4), **ENDS
    ).shape == (5, LENGTH)


def test_padding_rows_are_marked():
    token_B, is_real_B = last_prompt_tokens(small_model.PROMPTS)
    assert token_B.tolist() == [START] * 4 + [0] and is_real_B.tolist() == [True] * 4 + [False]
