"""Encoder-decoder formats: BART and its kin (Marian, Pegasus, M2M100), and T5. Checked against transformers 5.24."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kd_jax.errors import KdError
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.huggingface.base import (
    Config,
    Format,
    Setting,
    TensorMapping,
    choice,
    dense,
    fixed,
    only,
    plain,
    same,
)
from kd_jax.models.transformer import Transformer

WORDS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu", "gelu_new": "gelu_tanh"}
NORM = (("scale", "weight"), ("bias", "bias"))
LINEAR = (("kernel", "weight", dense), ("bias", "bias", plain))


def _norm(ours: str, theirs: str) -> dict[str, TensorMapping]:
    return {f"{ours}.{part}": plain(f"{theirs}.{their_part}") for part, their_part in NORM}


def _linear(ours: str, *theirs: str) -> dict[str, TensorMapping]:
    return {f"{ours}.{part}": kept(*(f"{name}.{their_part}" for name in theirs)) for part, their_part, kept in LINEAR}


def _bart_stack(stack: str) -> dict[str, TensorMapping]:
    """Names of BART's layers, which Marian, Pegasus and M2M100 share."""
    ours, theirs = f"{stack}_{{i}}", f"model.{stack}.layers.{{i}}"
    names = _norm(f"{ours}.norm_self", f"{theirs}.self_attn_layer_norm")
    names |= _norm(f"{ours}.norm_ffn", f"{theirs}.final_layer_norm")
    names |= _linear(f"{ours}.self_attention.qkv", *(f"{theirs}.self_attn.{x}_proj" for x in "qkv"))
    names |= _linear(f"{ours}.self_attention.out", f"{theirs}.self_attn.out_proj")
    names |= _linear(f"{ours}.ffn.in", f"{theirs}.fc1")
    names |= _linear(f"{ours}.ffn.out", f"{theirs}.fc2")
    return names


CROSS, THEIR_CROSS = "decoder_{i}.cross_attention", "model.decoder.layers.{i}.encoder_attn"
BART_NAMES = {
    "embedding": plain("model.shared.weight"),
    "output": dense("lm_head.weight"),
    "output_bias": plain("final_logits_bias", row=True),
    **_bart_stack("encoder"),
    **_bart_stack("decoder"),
    **_norm("decoder_{i}.norm_cross", f"{THEIR_CROSS}_layer_norm"),
    **_linear(f"{CROSS}.q", f"{THEIR_CROSS}.q_proj"),
    f"{CROSS}.kv": dense(f"{THEIR_CROSS}.k_proj.weight", f"{THEIR_CROSS}.v_proj.weight"),
    f"{CROSS}.kv_bias": plain(f"{THEIR_CROSS}.k_proj.bias", f"{THEIR_CROSS}.v_proj.bias"),
    **_linear(f"{CROSS}.out", f"{THEIR_CROSS}.out_proj"),
}
LAST_NORMS = _norm("encoder_norm", "model.encoder.layer_norm") | _norm("decoder_norm", "model.decoder.layer_norm")
STACKS = ("encoder", "decoder")
COPIES = r"model\.(en|de)coder\.embed_tokens\.weight"
SINUSOIDS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def _settings(*further: Setting) -> tuple[Setting, ...]:
    """What all of BART's kin say, and further settings."""
    return (
        same("encoder_layers", "encoder_layers"),
        same("decoder_layers", "decoder_layers"),
        same("d_model", "d_model"),
        same("d_ff", "encoder_ffn_dim", "decoder_ffn_dim"),
        same("heads", "encoder_attention_heads", "decoder_attention_heads"),
        choice("activation", "activation_function", WORDS),
        same("embedding_scale", "scale_embedding", default=False),
        Setting(
            lambda config: {"context": config["max_position_embeddings"]},
            lambda model: {"max_position_embeddings": model.context or 1024},
        ),
        fixed(
            norm="layer",
            norm_epsilon=1e-5,
            biases="all",
            qk_norm=False,
            kv_heads=0,
            head_dim=0,
            attention_scale=0.0,
            attention_soft_cap=0.0,
            soft_cap=0.0,
            head_scale=1.0,
            local=(),
        ),
        only("quantization_config", None),
        only("is_encoder_decoder", True),
        only("share_encoder_decoder_embeddings", True),
        *further,
    )


def _norms(before: bool, embedding: bool) -> tuple[Setting, ...]:
    """Where BART's kin have their norms; what other programs look up, though the architecture's name says it."""
    position = fixed(norm_position="before" if before else "after", embedding_norm=embedding)
    said = {"normalize_before": before, "normalize_embedding": embedding, "add_final_layer_norm": before}
    return (position, *(only(key, value) for key, value in said.items()))


SINUSOIDAL = fixed(positions="sinusoidal", first_position=0, head_bias=True)
PEGASUS = Format(
    model_type="pegasus",
    class_name="PegasusForConditionalGeneration",
    family=EncoderDecoder,
    settings=_settings(SINUSOIDAL, *_norms(before=True, embedding=False)),
    names=BART_NAMES | LAST_NORMS,
    ignored=COPIES,
    sinusoids=SINUSOIDS,
    prefix="model.",
    widened={"biases": "all", "head_bias": True},
)
MARIAN = dataclasses.replace(
    PEGASUS,
    model_type="marian",
    class_name="MarianMTModel",
    settings=_settings(SINUSOIDAL, *_norms(before=False, embedding=False)),
    names=BART_NAMES,
)
BART = dataclasses.replace(
    PEGASUS,
    model_type="bart",
    class_name="BartForConditionalGeneration",
    settings=_settings(
        fixed(positions="learned", first_position=0, head_bias=True), *_norms(before=False, embedding=True)
    ),
    names=BART_NAMES
    | {f"{stack}_positions": plain(f"model.{stack}.embed_positions.weight", skipped=2) for stack in STACKS}
    | _norm("encoder_enter", "model.encoder.layernorm_embedding")
    | _norm("decoder_enter", "model.decoder.layernorm_embedding"),
    sinusoids=(),
)
# Its positions count from the pad's number plus one.
M2M100 = dataclasses.replace(
    PEGASUS,
    model_type="m2m_100",
    class_name="M2M100ForConditionalGeneration",
    settings=_settings(
        fixed(norm_position="before", positions="timing", embedding_norm=False, head_bias=False),
        Setting(
            lambda config: {"first_position": config.get("pad_token_id", 1) + 1},
            lambda model: {"pad_token_id": model.first_position - 1},
        ),
    ),
    ignored=COPIES + r"|model\.(en|de)coder\.embed_positions\.weights",
    sinusoids=(),
    widened={"biases": "all"},
)


def _t5_stack(stack: str, sublayers: Mapping[str, tuple[int, str]]) -> dict[str, TensorMapping]:
    """Names of T5's layers: each sub-layer has a number."""
    names: dict[str, TensorMapping] = {}
    for ours, (number, theirs) in sublayers.items():
        block = f"{stack}.block.{{i}}.layer.{number}"
        names[f"{stack}_{{i}}.norm_{ours}.scale"] = plain(f"{block}.layer_norm.weight")
        if ours == "ffn":
            names[f"{stack}_{{i}}.ffn.in.kernel"] = dense(f"{block}.{theirs}.wi.weight")
            names[f"{stack}_{{i}}.ffn.out.kernel"] = dense(f"{block}.{theirs}.wo.weight")
            continue
        attention = f"{stack}_{{i}}.{ours}_attention"
        q, k, v = (f"{block}.{theirs}.{x}.weight" for x in "qkv")
        names[f"{attention}.out.kernel"] = dense(f"{block}.{theirs}.o.weight")
        joined = {"qkv.kernel": dense(q, k, v)} if ours == "self" else {"q.kernel": dense(q), "kv": dense(k, v)}
        names |= {f"{attention}.{part}": kept for part, kept in joined.items()}
    table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return names | {f"{stack}_buckets": plain(table), f"{stack}_norm.scale": plain(f"{stack}.final_layer_norm.weight")}


def _t5_gates(stack: str, number: int) -> dict[str, TensorMapping]:
    inner = f"{stack}.block.{{i}}.layer.{number}.DenseReluDense.wi_"
    return {f"{stack}_{{i}}.ffn.in.kernel": dense(f"{inner}0.weight", f"{inner}1.weight")}


def _t5_scale(config: Config) -> dict[str, Any]:
    """Tied models scale the last states; version 5 calls that `scale_decoder_outputs`, whatever is tied."""
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    return {"head_scale": config["d_model"] ** -0.5 if scaled else 1.0}


def _write_t5_scale(model: Transformer) -> dict[str, Any]:
    """Transformers scales by d_model ** -0.5 or not at all."""
    if model.head_scale not in (1.0, model.d_model**-0.5):
        raise KdError(f"model.head_scale: {model.head_scale}; the format has 1.0 or {model.d_model**-0.5}")
    return {"scale_decoder_outputs": model.head_scale != 1}


SELF, CROSS_ATTENTION, FFN = "SelfAttention", "EncDecAttention", "DenseReluDense"
T5_SETTINGS = (
    same("d_model", "d_model"),
    same("d_ff", "d_ff"),
    same("heads", "num_heads"),
    same("encoder_layers", "num_layers"),
    Setting(
        lambda config: {"decoder_layers": config.get("num_decoder_layers") or config["num_layers"]},
        lambda model: {"num_decoder_layers": model.decoder_layers},
    ),
    Setting(lambda config: {"head_dim": config["d_kv"]}, lambda model: {"d_kv": model.head_width}),
    same("norm_epsilon", "layer_norm_epsilon", default=1e-6),
    choice("activation", "feed_forward_proj", {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu"}),
    fixed(
        norm="rms",
        norm_position="before",
        positions="relative",
        biases="none",
        qk_norm=False,
        kv_heads=0,
        attention_scale=1.0,
        attention_soft_cap=0.0,
        soft_cap=0.0,
        embedding_scale=False,
        embedding_norm=False,
        head_bias=False,
        local=(),
    ),
    only("relative_attention_num_buckets", 32),
    only("relative_attention_max_distance", 128),
    only("quantization_config", None),
    only("is_encoder_decoder", True),
)
T5 = Format(
    model_type="t5",
    class_name="T5ForConditionalGeneration",
    family=EncoderDecoder,
    settings=(*T5_SETTINGS, Setting(_t5_scale, _write_t5_scale)),
    names={
        "embedding": plain("shared.weight"),
        "output": dense("lm_head.weight"),
        **_t5_stack("encoder", {"self": (0, SELF), "ffn": (1, FFN)}),
        **_t5_stack("decoder", {"self": (0, SELF), "cross": (1, CROSS_ATTENTION), "ffn": (2, FFN)}),
    },
    gated=_t5_gates("encoder", 1) | _t5_gates("decoder", 2),
    ignored=r"(en|de)coder\.embed_tokens\.weight|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias.*",
)
MT5 = dataclasses.replace(
    T5,
    model_type="mt5",
    class_name="MT5ForConditionalGeneration",
    settings=(*T5_SETTINGS, fixed(head_scale=1.0)),
)
FORMATS = (PEGASUS, MARIAN, BART, M2M100, T5, MT5)
