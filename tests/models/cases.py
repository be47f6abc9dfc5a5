"""Small networks of both families that together use every option; one compiled program of each serves most tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.batches.layouts import Bucket, Segment
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.rope import Linear, Yarn
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.types import Tokens
from tests.helpers.batches import random_examples

V = 29
OPTIONS = {
    "default": {},
    "marian": {"norm": "layer", "norm_position": "after", "positions": "sinusoidal", "biases": "all", "head_bias": True}
    | {"activation": "silu", "embedding_scale": True},
    "bart": {"norm": "layer", "norm_position": "after", "positions": "learned", "context": 24, "activation": "gelu"}
    | {"biases": "all", "vocab_multiple": 16, "embedding_norm": True},
    "t5": {"norm": "rms", "positions": "relative", "attention_scale": 1.0, "activation": "geglu", "head_dim": 6}
    | {"tied": False, "head_scale": 0.25},
    "m2m100": {"norm": "layer", "positions": "timing", "first_position": 2, "biases": "all", "activation": "relu"}
    | {"embedding_scale": True},
    "gemma2": {"norm": "rms", "norm_position": "both", "positions": "rotary", "kv_heads": 1, "activation": "geglu"}
    | {"attention_soft_cap": 2.0, "soft_cap": 3.0, "embedding_scale": True, "local": (0,), "rope_scaling": Linear(8.0)},
    "phi": {"norm": "rms", "norm_position": "output", "positions": "rotary", "rotary_fraction": 0.5, "head_dim": 8}
    | {"activation": "swiglu", "rope_scaling": Yarn(4.0, 16)},
    "qwen3": {"norm": "rms", "positions": "rotary", "qk_norm": True, "kv_heads": 2, "head_dim": 6, "biases": "qkv"}
    | {"activation": "gelu_tanh", "rope_theta": 1e6},
}
FAMILIES = ("encoder_decoder", "decoder_only")
EXTENDED = ("marian", "m2m100", "phi", "qwen3")  # run by `make test-all` only
each_option = pytest.mark.parametrize(
    "options", [pytest.param(name, marks=pytest.mark.extended if name in EXTENDED else ()) for name in OPTIONS]
)
each_family = pytest.mark.parametrize("family", FAMILIES)
ROWS, BUCKET = 3, Bucket(6, 8)


@functools.cache
def small_network(family: str, options: str):
    """Return (architecture, model, parameters); all parameters are random, so no bias or table is zero."""
    depth = 2 if options == "default" else 1
    sizes = {"d_model": 16, "heads": 4, "d_ff": 24, "dropout": 0.3} | OPTIONS[options]
    config = EncoderDecoder(1, depth, **sizes) if family == "encoder_decoder" else DecoderOnly(depth, **sizes)
    model, rng = config.build(V), np.random.default_rng(0)

    def draw(path, leaf):
        return jnp.asarray((path[-1].key == "scale") + 0.3 * rng.standard_normal(leaf.shape), jnp.float32)

    return config, model, jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


@functools.cache
def loss_and_gradient(family: str, options: str):
    """Return the jitted function (params, batch) -> ((loss, (hidden_BTD, logits_BTV)), gradients)."""
    _, model, _ = small_network(family, options)

    def loss(params, batch):
        hidden_BTD = model.apply(params, batch.inputs)
        logits_BTV = model.head(params).logits(hidden_BTD)
        logp_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), batch.targets_BT[..., None], -1)[..., 0]
        return -jnp.where(batch.mask_BT, logp_BT, 0.0).sum(), (hidden_BTD, logits_BTV)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def random_segments(seed: int, lengths) -> list[Segment]:
    """Return one segment for each (prompt length, completion length)."""
    return [Segment(i, encoded, 1.0, {}) for i, encoded in enumerate(random_examples(seed, lengths, V))]


def make_batch(config, rows):
    """Return a batch of ROWS rows, each of some segments, padded to BUCKET."""
    return jax.tree.map(jnp.asarray, config.layout(START).batch(rows, ROWS, BUCKET, {}))


def tokens_by_stack(inputs) -> dict[str, Tokens]:
    """Return the tokens of each stack."""
    return {name: tokens for name, tokens in inputs._asdict().items() if isinstance(tokens, Tokens)}


def pad_left(tokens: Tokens) -> Tokens:
    """Return the same rows with their padding on the left."""
    length, real_B = tokens.ids_BT.shape[1], (np.asarray(tokens.segment_BT) > 0).sum(1)
    columns = (np.arange(length) + real_B[:, None]) % length
    return Tokens(*(np.take_along_axis(np.asarray(x), columns, axis=1) for x in tokens))
