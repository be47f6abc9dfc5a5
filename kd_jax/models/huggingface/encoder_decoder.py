"""Encoder-decoder formats: Pegasus, Marian, BART, M2M100, T5, mT5. Checked against transformers 5.24."""

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
    fixed_fields,
    linear,
    read_choice,
    read_count,
    read_flag,
    read_number,
    required_value,
    same_value,
    tensors,
)
from kd_jax.models.transformer import Transformer

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu", "gelu_new": "gelu_tanh"}
NORM = (("scale", "weight"), ("bias", "bias"))
LINEAR = (("kernel", "weight", linear), ("bias", "bias", tensors))


def _norm(ours: str, theirs: str) -> dict[str, TensorMapping]:
    return {f"{ours}.{part}": tensors(f"{theirs}.{their_part}") for part, their_part in NORM}


def _linear(ours: str, *theirs: str) -> dict[str, TensorMapping]:
    return {
        f"{ours}.{part}": mapping(*(f"{name}.{their_part}" for name in theirs)) for part, their_part, mapping in LINEAR
    }


def _bart_stack(stack: str) -> dict[str, TensorMapping]:
    """Return the mappings of a stack of BART's layers, which Marian, Pegasus and M2M100 share."""
    ours, theirs = f"{stack}_{{i}}", f"model.{stack}.layers.{{i}}"
    mappings = _norm(f"{ours}.norm_self", f"{theirs}.self_attn_layer_norm")
    mappings |= _norm(f"{ours}.norm_ffn", f"{theirs}.final_layer_norm")
    mappings |= _linear(f"{ours}.self_attention.qkv", *(f"{theirs}.self_attn.{x}_proj" for x in "qkv"))
    mappings |= _linear(f"{ours}.self_attention.out", f"{theirs}.self_attn.out_proj")
    mappings |= _linear(f"{ours}.ffn.in", f"{theirs}.fc1")
    mappings |= _linear(f"{ours}.ffn.out", f"{theirs}.fc2")
    return mappings


CROSS, THEIR_CROSS = "decoder_{i}.cross_attention", "model.decoder.layers.{i}.encoder_attn"
BART_MAPPINGS = {
    "embedding": tensors("model.shared.weight"),
    "output": linear("lm_head.weight"),
    "output_bias": tensors("final_logits_bias", leading_axis=True),
    **_bart_stack("encoder"),
    **_bart_stack("decoder"),
    **_norm("decoder_{i}.norm_cross", f"{THEIR_CROSS}_layer_norm"),
    **_linear(f"{CROSS}.q", f"{THEIR_CROSS}.q_proj"),
    f"{CROSS}.kv": linear(f"{THEIR_CROSS}.k_proj.weight", f"{THEIR_CROSS}.v_proj.weight"),
    f"{CROSS}.kv_bias": tensors(f"{THEIR_CROSS}.k_proj.bias", f"{THEIR_CROSS}.v_proj.bias"),
    **_linear(f"{CROSS}.out", f"{THEIR_CROSS}.out_proj"),
}
LAST_NORMS = _norm("encoder_norm", "model.encoder.layer_norm") | _norm("decoder_norm", "model.decoder.layer_norm")
STACKS = ("encoder", "decoder")
COPIES = r"(model\.)?(en|de)coder\.embed_tokens\.weight"
SINUSOIDS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def _bart_settings(*further: Setting) -> tuple[Setting, ...]:
    """Return the settings that BART, Marian, Pegasus and M2M100 share, and further ones."""
    return (
        same_value("encoder_layers", "encoder_layers"),
        same_value("decoder_layers", "decoder_layers"),
        same_value("d_model", "d_model"),
        same_value("d_ff", "encoder_ffn_dim", "decoder_ffn_dim"),
        same_value("heads", "encoder_attention_heads", "decoder_attention_heads"),
        choice("activation", "activation_function", ACTIVATIONS),
        same_value("embedding_scale", "scale_embedding", read=read_flag),
        Setting(
            lambda config: {"context": read_count(config, "max_position_embeddings")},
            lambda model: {"max_position_embeddings": model.context or 1024},
        ),
        fixed_fields(
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
        required_value("quantization_config", None),
        required_value("is_encoder_decoder", True),
        required_value("share_encoder_decoder_embeddings", True),
        *further,
    )


def _norms(before: bool, embedding: bool) -> tuple[Setting, ...]:
    """Return the settings of the positions of norms."""
    position = fixed_fields(norm_position="before" if before else "after", embedding_norm=embedding)
    # transformers derives these from the architecture's name, but other programs read the keys.
    keys = {"normalize_before": before, "normalize_embedding": embedding, "add_final_layer_norm": before}
    return (position, *(required_value(key, value) for key, value in keys.items()))


BART_DEFAULTS: Config = {
    "encoder_layers": 12,
    "decoder_layers": 12,
    "d_model": 1024,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "scale_embedding": False,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
BART_ALIASES = {"num_hidden_layers": "encoder_layers", "num_attention_heads": "encoder_attention_heads"}
BART_ALIASES |= {"hidden_size": "d_model"}
SINUSOIDAL = fixed_fields(positions="sinusoidal", first_position=0, head_bias=True)
PEGASUS = Format(
    model_type="pegasus",
    class_name="PegasusForConditionalGeneration",
    architecture_class=EncoderDecoder,
    defaults=BART_DEFAULTS,
    aliases=BART_ALIASES,
    depth_keys=("encoder_layers", "decoder_layers"),
    settings=_bart_settings(SINUSOIDAL, *_norms(before=True, embedding=False)),
    mappings=BART_MAPPINGS | LAST_NORMS,
    copies=COPIES,
    sinusoid_names=SINUSOIDS,
    prefix="model.",
    mandatory_fields={"biases": "all", "head_bias": True},
)
MARIAN = dataclasses.replace(
    PEGASUS,
    model_type="marian",
    class_name="MarianMTModel",
    settings=_bart_settings(SINUSOIDAL, *_norms(before=False, embedding=False)),
    mappings=BART_MAPPINGS,
)
BART = dataclasses.replace(
    PEGASUS,
    model_type="bart",
    class_name="BartForConditionalGeneration",
    settings=_bart_settings(
        fixed_fields(positions="learned", first_position=0, head_bias=True), *_norms(before=False, embedding=True)
    ),
    mappings=BART_MAPPINGS
    | {f"{stack}_positions": tensors(f"model.{stack}.embed_positions.weight", unused_rows=2) for stack in STACKS}
    | _norm("encoder_enter", "model.encoder.layernorm_embedding")
    | _norm("decoder_enter", "model.decoder.layernorm_embedding"),
    sinusoid_names=(),
)
# Positions of M2M100 count from the padding token's id plus one.
M2M100 = dataclasses.replace(
    PEGASUS,
    model_type="m2m_100",
    class_name="M2M100ForConditionalGeneration",
    defaults={**BART_DEFAULTS, "activation_function": "relu", "scale_embedding": True, "pad_token_id": 1},
    settings=_bart_settings(
        fixed_fields(norm_position="before", positions="timing", embedding_norm=False, head_bias=False),
        Setting(
            lambda config: {"first_position": read_count(config, "pad_token_id", 0) + 1},
            lambda model: {"pad_token_id": model.first_position - 1},
        ),
    ),
    ignored_names=r"model\.(en|de)coder\.embed_positions\.weights",
    sinusoid_names=(),
    mandatory_fields={"biases": "all"},
)


def _t5_stack(stack: str, sublayers: Mapping[str, tuple[int, str]]) -> dict[str, TensorMapping]:
    """Return the mappings of a stack of T5; `sublayers` is our sub-layer's name -> (its number, T5's name)."""
    mappings: dict[str, TensorMapping] = {}
    for ours, (number, theirs) in sublayers.items():
        block = f"{stack}.block.{{i}}.layer.{number}"
        mappings[f"{stack}_{{i}}.norm_{ours}.scale"] = tensors(f"{block}.layer_norm.weight")
        if ours == "ffn":
            mappings[f"{stack}_{{i}}.ffn.in.kernel"] = linear(f"{block}.{theirs}.wi.weight")
            mappings[f"{stack}_{{i}}.ffn.out.kernel"] = linear(f"{block}.{theirs}.wo.weight")
            continue
        attention = f"{stack}_{{i}}.{ours}_attention"
        q, k, v = (f"{block}.{theirs}.{x}.weight" for x in "qkv")
        mappings[f"{attention}.out.kernel"] = linear(f"{block}.{theirs}.o.weight")
        joined = {"qkv.kernel": linear(q, k, v)} if ours == "self" else {"q.kernel": linear(q), "kv": linear(k, v)}
        mappings |= {f"{attention}.{part}": mapping for part, mapping in joined.items()}
    table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return mappings | {
        f"{stack}_buckets": tensors(table),
        f"{stack}_norm.scale": tensors(f"{stack}.final_layer_norm.weight"),
    }


def _t5_gates(stack: str, number: int) -> dict[str, TensorMapping]:
    inner = f"{stack}.block.{{i}}.layer.{number}.DenseReluDense.wi_"
    return {f"{stack}_{{i}}.ffn.in.kernel": linear(f"{inner}0.weight", f"{inner}1.weight")}


def _t5_scale(config: Config) -> dict[str, Any]:
    """Return the scale of the last states; transformers 4 scales them in tied models, 5 by a key of its own."""
    scaled = {"scale_decoder_outputs": config["tie_word_embeddings"] is not False, **config}
    is_scaled = read_flag(scaled, "scale_decoder_outputs")
    return {"head_scale": read_count(config, "d_model") ** -0.5 if is_scaled else 1.0}


def _read_t5_activation(config: Config) -> dict[str, Any]:
    """Return the activation; `dense_act_fn` and `is_gated_act` override `feed_forward_proj`, as in transformers."""
    gate, name = read_choice(config, "feed_forward_proj", T5_ACTIVATIONS)
    both = {"is_gated_act": gate, "dense_act_fn": name, **config}
    activations = T5_GATED if read_flag(both, "is_gated_act") else ACTIVATIONS
    return {"activation": read_choice(both, "dense_act_fn", activations)}


def _write_t5_activation(model: Transformer) -> dict[str, Any]:
    for key, (gate, name) in T5_ACTIVATIONS.items():
        if (T5_GATED if gate else ACTIVATIONS)[name] == model.activation:
            return {"feed_forward_proj": key}
    raise KdError(f"model.activation: expected {' or '.join(T5_ACTIVATIONS)}, got {model.activation!r}.")


def _read_t5_decoder_layers(config: Config) -> dict[str, Any]:
    key = "num_layers" if config["num_decoder_layers"] is None else "num_decoder_layers"
    return {"decoder_layers": read_count(config, key)}


def _write_t5_scale(model: Transformer) -> dict[str, Any]:
    """Return whether the last states are scaled by d_model ** -0.5."""
    if model.head_scale not in (1.0, model.d_model**-0.5):
        raise KdError(f"model.head_scale: expected 1.0 or {model.d_model**-0.5}, got {model.head_scale}.")
    return {"scale_decoder_outputs": model.head_scale != 1}


# feed_forward_proj -> (is_gated_act, dense_act_fn)
T5_ACTIVATIONS = {"relu": (False, "relu"), "gated-gelu": (True, "gelu_new"), "gated-silu": (True, "silu")}
T5_ACTIVATIONS |= {name: (False, name) for name in ACTIVATIONS if name != "relu"}
T5_GATED = {"gelu_new": "geglu", "gelu_pytorch_tanh": "geglu", "silu": "swiglu", "swish": "swiglu"}
SELF, CROSS_ATTENTION, FFN = "SelfAttention", "EncDecAttention", "DenseReluDense"
T5_SETTINGS = (
    same_value("d_model", "d_model"),
    same_value("d_ff", "d_ff"),
    same_value("heads", "num_heads"),
    same_value("encoder_layers", "num_layers"),
    Setting(
        _read_t5_decoder_layers,
        lambda model: {"num_decoder_layers": model.stacks()["decoder"]},
    ),
    Setting(lambda config: {"head_dim": read_count(config, "d_kv")}, lambda model: {"d_kv": model.head_width}),
    same_value("norm_epsilon", "layer_norm_epsilon", read=read_number),
    Setting(_read_t5_activation, _write_t5_activation),
    fixed_fields(
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
    required_value("relative_attention_num_buckets", 32),
    required_value("relative_attention_max_distance", 128),
    required_value("quantization_config", None),
    required_value("is_encoder_decoder", True),
)
T5_DEFAULTS: Config = {
    "d_model": 512,
    "d_ff": 2048,
    "d_kv": 64,
    "num_heads": 8,
    "num_layers": 6,
    "num_decoder_layers": None,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
}
MT5_DEFAULTS = {"d_ff": 1024, "num_heads": 6, "num_layers": 8, "feed_forward_proj": "gated-gelu"}
T5 = Format(
    model_type="t5",
    class_name="T5ForConditionalGeneration",
    architecture_class=EncoderDecoder,
    defaults=T5_DEFAULTS,
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },  # fmt: skip
    depth_keys=("num_layers", "num_decoder_layers"),
    always_tied=True,
    settings=(*T5_SETTINGS, Setting(_t5_scale, _write_t5_scale)),
    mappings={
        "embedding": tensors("shared.weight"),
        "output": linear("lm_head.weight"),
        **_t5_stack("encoder", {"self": (0, SELF), "ffn": (1, FFN)}),
        **_t5_stack("decoder", {"self": (0, SELF), "cross": (1, CROSS_ATTENTION), "ffn": (2, FFN)}),
    },
    gated_mappings=_t5_gates("encoder", 1) | _t5_gates("decoder", 2),
    copies=COPIES,
    ignored_names=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias.*",
)
MT5 = dataclasses.replace(
    T5,
    model_type="mt5",
    class_name="MT5ForConditionalGeneration",
    defaults=T5_DEFAULTS | MT5_DEFAULTS,
    settings=(*T5_SETTINGS, fixed_fields(head_scale=1.0)),
)
FORMATS = (PEGASUS, MARIAN, BART, M2M100, T5, MT5)
