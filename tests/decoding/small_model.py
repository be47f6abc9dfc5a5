"""A small network and prompts for the tests of decoding, and teacher-forced log-probabilities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.batches.layouts import Bucket, EncoderDecoderLayout
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.tasks.base import Encoded
from kd_jax.tokenizers.sentencepiece import START
from tests.helpers.batches import random_examples, to_batch

EOS, V, LENGTH = 2, 6, 4
ROWS = (0, 1, 2, 3)  # of PROMPTS; the last row is padding
ENDS = {"eos": EOS, "length": LENGTH}
SOURCES = [example.prompt for example in random_examples(0, [(4, 0), (2, 0), (3, 0), (1, 0)], V)]
PROMPTS = EncoderDecoderLayout(START).prompts(SOURCES, 5, 4)._replace(index_B=np.arange(5))
ARCHITECTURE = EncoderDecoder(encoder_layers=1, decoder_layers=2, d_model=16, heads=2, d_ff=16, dropout=0.0)
MODEL = ARCHITECTURE.build(V)
PARAMS = jax.tree.map(lambda p: 3.0 * p, MODEL.init(jax.random.key(3)))


def logits_of(source, completions, params=PARAMS, model=MODEL):
    """Return the teacher-forced logits of completions of one length after one source, [B, T, V]."""
    encoded = [Encoded(source, np.asarray(ids), np.ones(len(source) + len(ids), bool)) for ids in completions]
    inputs = to_batch(encoded, Bucket(4, len(completions[0]))).inputs
    return model.head(params).logits(model.apply(params, inputs))


def logp_of(source, completions, params=PARAMS, model=MODEL):
    """Return the log-probability of each completion up to its end token, float64 [B]."""
    logp_BTV = jax.nn.log_softmax(logits_of(source, completions, params, model))
    ids_BT = np.asarray(completions)
    token_logp_BT = np.take_along_axis(np.asarray(logp_BTV, np.float64), ids_BT[..., None], -1)[..., 0]
    after_end_BT = np.cumsum(ids_BT == EOS, axis=1) - (ids_BT == EOS) > 0
    return np.where(after_end_BT, 0.0, token_logp_BT).sum(1)


def with_bias(bias_V):
    """Return (network, parameters) with a bias on the logits, so that some ids are written more often or never."""
    biased = dataclasses.replace(ARCHITECTURE, head_bias=True)
    return biased.build(V), dict(PARAMS) | {"output_bias": jnp.asarray(bias_V, jnp.float32)}
