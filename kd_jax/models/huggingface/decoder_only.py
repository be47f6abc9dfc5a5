"""Decoder-only formats: Llama, Mistral, Qwen 2 and 3, Gemma 3, GPT-2. Checked against transformers 5.24."""

import dataclasses
from typing import Any

from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.huggingface.base import (
    Config,
    Format,
    Setting,
    choice,
    fixed_fields,
    linear,
    required_value,
    same_value,
    tensors,
)
from kd_jax.models.rope import Linear, Llama3
from kd_jax.models.transformer import Transformer

GATED = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}


def read_rope_scaling(rope: Config) -> Linear | Llama3 | None:
    """Return the scaling of rotary angles from `rope_parameters` (transformers 5) or `rope_scaling` (4)."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return Linear(float(rope["factor"]))
    if kind == "llama3":
        return Llama3(
            factor=float(rope["factor"]),
            low=float(rope["low_freq_factor"]),
            high=float(rope["high_freq_factor"]),
            original=rope["original_max_position_embeddings"],
        )
    raise KdError(f"config.json: rope_type: expected 'default' or 'linear' or 'llama3', got {kind!r}.")


def write_rope_scaling(scaling: Linear | Llama3 | None) -> dict[str, Any]:
    """Return the inverse of `read_rope_scaling`."""
    if scaling is None:
        return {"rope_type": "default"}
    if isinstance(scaling, Linear):
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original,
    }


def _read_rope(config: Config) -> dict[str, Any]:
    """Return theta and scaling, which transformers 5 stores together and 4 apart."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    return {"rope_theta": float(theta), "rope_scaling": read_rope_scaling(rope)}


ROPE = Setting(
    _read_rope,
    lambda model: {"rope_parameters": {"rope_theta": model.rope_theta, **write_rope_scaling(model.rope_scaling)}},
)


def _read_two_ropes(config: Config) -> dict[str, Any]:
    """Return the rotary angles of Gemma 3, whose windowed layers have a base of their own and no scaling."""
    layers = config["num_hidden_layers"]
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6))
    kinds = config.get("layer_types") or [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)
    ]
    ropes = config.get("rope_parameters")
    if ropes is None:  # written by transformers 4
        full = {"rope_theta": config.get("rope_theta", 1e6), **(config.get("rope_scaling") or {})}
        ropes = {"full_attention": full, "sliding_attention": {"rope_theta": config.get("rope_local_base_freq", 1e4)}}
    full, local = ropes["full_attention"], ropes["sliding_attention"]
    if read_rope_scaling(local) is not None:
        raise KdError(f"config.json: rope_parameters.sliding_attention: expected rope_type 'default', got {local}.")
    return {
        "rope_theta": float(full["rope_theta"]),
        "rope_scaling": read_rope_scaling(full),
        "local": tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention"),
        "local_rope_theta": float(local["rope_theta"]),
    }


def _write_two_ropes(model: Transformer) -> dict[str, Any]:
    layers = model.stacks()["decoder"]
    kinds = ["sliding_attention" if i in model.local else "full_attention" for i in range(layers)]
    return {
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": {"rope_theta": model.rope_theta, **write_rope_scaling(model.rope_scaling)},
            "sliding_attention": {"rope_theta": model.local_rope_theta, "rope_type": "default"},
        },
    }


def _read_context(config: Config) -> dict[str, Any]:
    """Return the maximum length of texts: no longer than a sliding window, because windows are not implemented."""
    windowed = config.get("use_sliding_window", config.get("sliding_window") is not None)
    window = config.get("sliding_window") if windowed else None
    return {"context": min(config["max_position_embeddings"], window or config["max_position_embeddings"])}


CONTEXT = Setting(_read_context, lambda model: {"max_position_embeddings": model.context or 2048})
# Mistral's window is written as wide as the context, so it has no effect.
WINDOW = Setting(lambda config: {}, lambda model: {"sliding_window": model.context or 2048})


def _read_biases(config: Config) -> dict[str, Any]:
    """Return the biases of Llama, which has them in attention and feed-forward layers or in neither."""
    attention, mlp = config.get("attention_bias", False), config.get("mlp_bias", False)
    if attention != mlp:
        raise KdError(f"config.json: attention_bias, mlp_bias: expected equal values, got {attention} and {mlp}.")
    return {"biases": "all" if attention else "none"}


def _write_biases(model: Transformer) -> dict[str, Any]:
    if model.biases == "qkv":
        raise KdError("model.biases: expected 'all' or 'none', got 'qkv'.")
    return dict.fromkeys(("attention_bias", "mlp_bias"), model.biases == "all")


def _write_scale(model: Transformer) -> dict[str, Any]:
    """Return the scale as Gemma 3 stores it: the inverse square, an integer."""
    scale = model.attention_scale or model.head_width**-0.5
    number = round(scale**-2)
    if abs(number**-0.5 - scale) > 1e-6 * scale:
        raise KdError(f"model.attention_scale: expected 1 / sqrt(n) of an integer n, got {scale}.")
    return {"query_pre_attn_scalar": number}


SIZES = (
    same_value("layers", "num_hidden_layers"),
    same_value("d_model", "hidden_size"),
    same_value("d_ff", "intermediate_size"),
    same_value("heads", "num_attention_heads"),
    Setting(
        lambda config: {"kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"]},
        lambda model: {"num_key_value_heads": model.key_heads},
    ),
    Setting(
        lambda config: {"head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]},
        lambda model: {"head_dim": model.head_width},
    ),
    same_value("norm_epsilon", "rms_norm_eps", default=1e-6),
)
SHARED = (  # settings of all formats with Llama's layers
    fixed_fields(
        norm="rms",
        positions="rotary",
        first_position=0,
        embedding_norm=False,
        head_scale=1.0,
        head_bias=False,
    ),
    required_value("quantization_config", None),
    required_value("use_cache", True, False),
)
PRE_NORM = fixed_fields(norm_position="before", embedding_scale=False, attention_soft_cap=0.0, soft_cap=0.0, local=())
UNSCALED = fixed_fields(attention_scale=0.0)

LAYER = "model.layers.{i}."
LLAMA_MAPPINGS = {
    "embedding": tensors("model.embed_tokens.weight"),
    "output": linear("lm_head.weight"),
    "decoder_norm.scale": tensors("model.norm.weight"),
    "decoder_{i}.norm_self.scale": tensors(LAYER + "input_layernorm.weight"),
    "decoder_{i}.norm_ffn.scale": tensors(LAYER + "post_attention_layernorm.weight"),
    "decoder_{i}.self_attention.qkv.kernel": linear(*(f"{LAYER}self_attn.{x}_proj.weight" for x in "qkv")),
    "decoder_{i}.self_attention.qkv.bias": tensors(*(f"{LAYER}self_attn.{x}_proj.bias" for x in "qkv")),
    "decoder_{i}.self_attention.out.kernel": linear(LAYER + "self_attn.o_proj.weight"),
    "decoder_{i}.self_attention.out.bias": tensors(LAYER + "self_attn.o_proj.bias"),
    "decoder_{i}.ffn.in.kernel": linear(LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"),
    "decoder_{i}.ffn.in.bias": tensors(LAYER + "mlp.gate_proj.bias", LAYER + "mlp.up_proj.bias"),
    "decoder_{i}.ffn.out.kernel": linear(LAYER + "mlp.down_proj.weight"),
    "decoder_{i}.ffn.out.bias": tensors(LAYER + "mlp.down_proj.bias"),
}
HEAD_NORMS = {
    "decoder_{i}.self_attention.q_norm.scale": tensors(LAYER + "self_attn.q_norm.weight"),
    "decoder_{i}.self_attention.k_norm.scale": tensors(LAYER + "self_attn.k_norm.weight"),
}
ROTARY_BUFFERS = r".*rotary_emb\.inv_freq"

COMMON = (*SIZES, *SHARED, PRE_NORM, UNSCALED, ROPE, CONTEXT, choice("activation", "hidden_act", GATED))
LLAMA = Format(
    model_type="llama",
    class_name="LlamaForCausalLM",
    architecture_class=DecoderOnly,
    settings=(
        *COMMON,
        fixed_fields(qk_norm=False),
        Setting(_read_biases, _write_biases),
        required_value("pretraining_tp", 1),
    ),
    mappings=LLAMA_MAPPINGS,
    ignored_names=ROTARY_BUFFERS,
    prefix="model.",
)
MISTRAL = dataclasses.replace(
    LLAMA,
    model_type="mistral",
    class_name="MistralForCausalLM",
    settings=(*COMMON, WINDOW, fixed_fields(qk_norm=False, biases="none")),
)
QWEN2 = dataclasses.replace(
    LLAMA,
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    settings=(*COMMON, fixed_fields(qk_norm=False, biases="qkv")),
)
QWEN3 = dataclasses.replace(
    LLAMA,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    settings=(*COMMON, fixed_fields(qk_norm=True, biases="none"), required_value("attention_bias", False)),
    mappings=LLAMA_MAPPINGS | HEAD_NORMS,
)

GEMMA_NORMS = {
    "decoder_norm.scale": "model.norm.weight",
    "decoder_{i}.norm_self.scale": LAYER + "input_layernorm.weight",
    "decoder_{i}.norm_out_self.scale": LAYER + "post_attention_layernorm.weight",
    "decoder_{i}.norm_ffn.scale": LAYER + "pre_feedforward_layernorm.weight",
    "decoder_{i}.norm_out_ffn.scale": LAYER + "post_feedforward_layernorm.weight",
    "decoder_{i}.self_attention.q_norm.scale": LAYER + "self_attn.q_norm.weight",
    "decoder_{i}.self_attention.k_norm.scale": LAYER + "self_attn.k_norm.weight",
}
GEMMA3 = Format(
    model_type="gemma3_text",
    class_name="Gemma3ForCausalLM",
    architecture_class=DecoderOnly,
    settings=(
        *SIZES, *SHARED, CONTEXT, WINDOW, Setting(_read_two_ropes, _write_two_ropes),
        fixed_fields(norm_position="both", embedding_scale=True, qk_norm=True, biases="none"),
        choice("activation", "hidden_activation", GATED, default="gelu_pytorch_tanh"),
        Setting(
            lambda config: {"attention_scale": config.get("query_pre_attn_scalar", 256) ** -0.5},
            _write_scale,
        ),
        Setting(
            lambda config: {
                "soft_cap": config.get("final_logit_softcapping") or 0.0,
                "attention_soft_cap": config.get("attn_logit_softcapping") or 0.0,
            },
            lambda model: {
                "final_logit_softcapping": model.soft_cap or None,
                "attn_logit_softcapping": model.attention_soft_cap or None,
            },
        ),
        required_value("attention_bias", False), required_value("use_bidirectional_attention", False, None),
    ),
    mappings=LLAMA_MAPPINGS | {path: tensors(name, offset=1.0) for path, name in GEMMA_NORMS.items()},
    ignored_names=ROTARY_BUFFERS,
    prefix="model.",
)  # fmt: skip

H = "transformer.h.{i}."
GPT2 = Format(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    architecture_class=DecoderOnly,
    settings=(
        same_value("layers", "n_layer"), same_value("d_model", "n_embd"), same_value("heads", "n_head"),
        Setting(
            lambda config: {"d_ff": config.get("n_inner") or 4 * config["n_embd"]},
            lambda model: {"n_inner": model.d_ff},
        ),
        same_value("context", "n_positions"), same_value("norm_epsilon", "layer_norm_epsilon", default=1e-5),
        choice("activation", "activation_function", {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
               "gelu": "gelu", "relu": "relu", "silu": "silu"}, default="gelu_new"),
        fixed_fields(norm="layer", norm_position="before", positions="learned", biases="all", qk_norm=False, kv_heads=0,
              head_dim=0, attention_scale=0.0, attention_soft_cap=0.0, soft_cap=0.0, embedding_scale=False,
              embedding_norm=False, head_scale=1.0, head_bias=False, local=()),
        required_value("scale_attn_weights", True), required_value("scale_attn_by_inverse_layer_idx", False),
        required_value("add_cross_attention", False), required_value("quantization_config", None),
    ),
    mappings={
        "embedding": tensors("transformer.wte.weight"),
        "decoder_positions": tensors("transformer.wpe.weight"),
        "output": linear("lm_head.weight"),
        "decoder_{i}.self_attention.qkv.kernel": tensors(H + "attn.c_attn.weight"),
        "decoder_{i}.self_attention.qkv.bias": tensors(H + "attn.c_attn.bias"),
        "decoder_{i}.self_attention.out.kernel": tensors(H + "attn.c_proj.weight"),
        "decoder_{i}.self_attention.out.bias": tensors(H + "attn.c_proj.bias"),
        "decoder_{i}.ffn.in.kernel": tensors(H + "mlp.c_fc.weight"),
        "decoder_{i}.ffn.in.bias": tensors(H + "mlp.c_fc.bias"),
        "decoder_{i}.ffn.out.kernel": tensors(H + "mlp.c_proj.weight"),
        "decoder_{i}.ffn.out.bias": tensors(H + "mlp.c_proj.bias"),
        **{f"decoder_norm.{ours}": tensors(f"transformer.ln_f.{theirs}")
           for ours, theirs in (("scale", "weight"), ("bias", "bias"))},
        **{f"decoder_{{i}}.norm_{ours}.{part}": tensors(f"{H}{theirs}.{their_part}")
           for ours, theirs in (("self", "ln_1"), ("ffn", "ln_2"))
           for part, their_part in (("scale", "weight"), ("bias", "bias"))},
    },
    ignored_names=r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",
    prefix="transformer.",
)  # fmt: skip
FORMATS = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3, GPT2)
