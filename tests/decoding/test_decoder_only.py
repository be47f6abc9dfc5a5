"""Decoding of left-padded prompts: identities with the teacher-forced model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.batches.layouts import DecoderOnlyLayout
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.rules import penalise_repetition
from kd_jax.decoding.sampling import sample
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.tasks.base import Sampling
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.types import Inputs, Tokens
from tests.decoding.small_model import ENDS, EOS, SOURCES, V

MODEL = DecoderOnly(layers=2, d_model=16, heads=2, d_ff=16, dropout=0.0).build(V)
PARAMS = jax.tree.map(lambda p: 3.0 * p, MODEL.init(jax.random.key(5)))
PROMPTS = DecoderOnlyLayout(START).prompts(SOURCES, 5, 4)


def logits_of(source, ids_T):
    """Return the teacher-forced logits after one prompt without padding, [T, V]."""
    row = jnp.array([[START, *source, *ids_T[:-1]]], jnp.int32)
    inputs = Inputs(jnp.array([0]), Tokens(row, jnp.arange(row.shape[1])[None], jnp.ones_like(row)), None)
    return MODEL.head(PARAMS).logits(MODEL.apply(PARAMS, inputs))[0, len(source) :]


def up_to_end(ids_T):
    ids = ids_T.tolist()
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def test_greedy_is_the_argmax_of_the_teacher_forced_model():
    for source, ids_T in zip(SOURCES, greedy(MODEL, PARAMS, PROMPTS, **ENDS), strict=False):
        text = up_to_end(ids_T)
        assert text == logits_of(source, text).argmax(-1).tolist()


def test_log_probabilities_of_beam_search_equal_the_teacher_forced_model():
    decoded = jax.device_get(beam_search(MODEL, PARAMS, PROMPTS, beam=2, alpha=0.6, **ENDS))
    for row, source in enumerate(SOURCES):
        for ids_T, logp in zip(decoded.ids_BKT[row], decoded.logp_BK[row], strict=True):
            text = up_to_end(ids_T)
            logp_TV = jax.nn.log_softmax(logits_of(source, text))
            assert logp_TV[np.arange(len(text)), text].sum() == pytest.approx(logp, rel=1e-5, abs=1e-5)


def test_the_penalty_does_not_count_padding():
    penalised = sample(MODEL, PARAMS, PROMPTS, sampling=Sampling(repetition_penalty=1.5), **ENDS)
    for source, ids_T in zip(SOURCES, penalised, strict=False):
        text = up_to_end(ids_T)
        before = [[START, *source, *text[:t]] for t in range(len(text))]
        seen_TV = jnp.array([[v in ids for v in range(V)] for ids in before])
        assert text == penalise_repetition(logits_of(source, text), seen_TV, 1.5).argmax(-1).tolist()
