"""Checks of hyper-parameters, and the shapes of the defaults."""

import dataclasses

import jax
import pytest

from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.rope import Dynamic, Linear, Llama3, Yarn

WRONG = [
    (DecoderOnly, {"layers": 0}, "layers"),
    (EncoderDecoder, {"encoder_layers": 1.5}, "encoder_layers"),
    (EncoderDecoder, {"decoder_layers": 0}, "decoder_layers"),
    (DecoderOnly, {"d_model": True}, "d_model"),
    (EncoderDecoder, {"heads": 3}, "heads"),
    (DecoderOnly, {"kv_heads": 3}, "kv_heads"),
    (DecoderOnly, {"kv_heads": 8}, "kv_heads"),
    (DecoderOnly, {"head_dim": 5}, "head_dim"),
    (DecoderOnly, {"d_model": 12}, "head_dim"),
    (EncoderDecoder, {"positions": "learned"}, "context"),
    (EncoderDecoder, {"context": -1}, "context"),
    (DecoderOnly, {"local": (6,)}, "local"),
    (DecoderOnly, {"rope_scaling": Linear(0.0)}, "rope_scaling.factor"),
    (DecoderOnly, {"rope_scaling": Llama3(8.0, 4.0, 1.0, 64)}, "rope_scaling.high"),
    (DecoderOnly, {"rope_scaling": Yarn(4.0, 64, low=8.0, high=4.0)}, "rope_scaling.high"),
    (DecoderOnly, {"rope_scaling": Yarn(4.0, 64, magnitude=-1.0)}, "rope_scaling.magnitude"),
    (DecoderOnly, {"rope_scaling": Yarn(4.0, 0)}, "rope_scaling.original"),
    (DecoderOnly, {"rope_scaling": Yarn(4.0, 64, truncate=1)}, "rope_scaling.truncate"),
    (DecoderOnly, {"rope_scaling": Yarn(4.0, 64), "rope_theta": 1.0}, "rope_theta"),
    (DecoderOnly, {"rope_scaling": Dynamic(-4.0), "context": 64}, "rope_scaling.factor"),
    (DecoderOnly, {"rope_scaling": Dynamic(4.0)}, "context"),
    (DecoderOnly, {"rotary_fraction": 0.0}, "rotary_fraction"),
    (DecoderOnly, {"rotary_fraction": 1.5}, "rotary_fraction"),
    (DecoderOnly, {"rotary_fraction": 0.1}, "rotary_fraction"),  # 3 of 32 channels
    (DecoderOnly, {"unrotated": (6,)}, "unrotated"),
    (DecoderOnly, {"unrotated": (0,), "positions": "sinusoidal"}, "unrotated"),
    (DecoderOnly, {"qk_norm_joint": True}, "qk_norm_joint"),
    (EncoderDecoder, {"qk_norm": True, "qk_norm_joint": True}, "qk_norm_joint"),
    (EncoderDecoder, {"positions": "alibi"}, "positions"),
    (EncoderDecoder, {"norm": "batch"}, "norm"),
    (EncoderDecoder, {"norm_position": "between"}, "norm_position"),
    (EncoderDecoder, {"norm_epsilon": 0.0}, "norm_epsilon"),
    (DecoderOnly, {"activation": "tanh"}, "activation"),
    (DecoderOnly, {"rope_theta": -1.0}, "rope_theta"),
    (DecoderOnly, {"attention_scale": -1.0}, "attention_scale"),
    (DecoderOnly, {"attention_soft_cap": float("inf")}, "attention_soft_cap"),
    (EncoderDecoder, {"soft_cap": "30"}, "soft_cap"),
    (EncoderDecoder, {"dropout": 1.0}, "dropout"),
    (EncoderDecoder, {"biases": 1}, "biases"),
    (EncoderDecoder, {"vocab_multiple": 0}, "vocab_multiple"),
    (DecoderOnly, {"compute": "float16"}, "compute"),
    (EncoderDecoder, {"remat": "all"}, "remat"),
    (DecoderOnly, {"scan_layers": 1}, "scan_layers"),
]


@pytest.mark.parametrize("family, fields, field", WRONG)
def test_invalid_field_is_named(family, fields, field):
    with pytest.raises(KdError, match=rf"^model\.{field}: expected .*, got "):
        family(**fields).build(10)


@pytest.mark.parametrize("config", [EncoderDecoder(), DecoderOnly()], ids=["encoder_decoder", "decoder_only"])
def test_defaults_are_published_shapes(config):
    """Pegasus has biases in norms, Llama has none; projections have none in either."""
    config.check()
    params = jax.eval_shape(dataclasses.replace(config, d_model=8, d_ff=8).build(10).init, jax.random.key(0))
    keys = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    pegasus, llama = {"embedding", "kernel", "kv", "scale", "bias"}, {"embedding", "kernel", "scale"}
    assert keys == (pegasus if config.family == "encoder_decoder" else llama)
    assert "bias" not in params["decoder_0"]["self_attention"]["qkv"]
