"""Decoder-only formats: Llama and its kin, GPT-2, Gemma 3. Checked against transformers 5.24."""

import dataclasses
from typing import Any

from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.huggingface.base import Config, Format, Setting, choice, dense, fixed, only, plain, same
from kd_jax.models.rope import Linear, Llama3
from kd_jax.models.transformer import Transformer

GATED = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}


def scaling_of(rope: Config) -> Linear | Llama3 | None:
    """How angles are scaled, from `rope_parameters` (transformers 5) or `rope_scaling` (4).

    Raises:
      KdError: for a kind that is not implemented.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return Linear(float(rope["factor"]))
    if kind == "llama3":
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        return Llama3(float(rope["factor"]), low, high, rope["original_max_position_embeddings"])
    raise KdError(f"config.json: rope_type is {kind!r}; implemented: 'default', 'linear', 'llama3'")


def said_of(scaling: Linear | Llama3 | None) -> dict[str, Any]:
    """The inverse of `scaling_of`."""
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
    """Version 5 keeps theta and scaling together, version 4 apart."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    return {"rope_theta": float(theta), "rope_scaling": scaling_of(rope)}


ROPE = Setting(
    _read_rope,
    lambda model: {"rope_parameters": {"rope_theta": model.rope_theta, **said_of(model.rope_scaling)}},
)


def _read_two_ropes(config: Config) -> dict[str, Any]:
    """Gemma 3: windowed layers have a base of their own, and no scaling."""
    layers = config["num_hidden_layers"]
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6))
    kinds = config.get("layer_types") or [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)
    ]
    ropes = config.get("rope_parameters")
    if ropes is None:  # version 4
        full = {"rope_theta": config.get("rope_theta", 1e6), **(config.get("rope_scaling") or {})}
        ropes = {"full_attention": full, "sliding_attention": {"rope_theta": config.get("rope_local_base_freq", 1e4)}}
    full, local = ropes["full_attention"], ropes["sliding_attention"]
    if scaling_of(local) is not None:
        raise KdError(f"config.json: rope_parameters.sliding_attention is {local}; implemented: rope_type 'default'")
    return {
        "rope_theta": float(full["rope_theta"]),
        "rope_scaling": scaling_of(full),
        "local": tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention"),
        "local_rope_theta": float(local["rope_theta"]),
    }


def _write_two_ropes(model: Transformer) -> dict[str, Any]:
    kinds = ["sliding_attention" if i in model.local else "full_attention" for i in range(model.layers)]
    return {
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": {"rope_theta": model.rope_theta, **said_of(model.rope_scaling)},
            "sliding_attention": {"rope_theta": model.local_rope_theta, "rope_type": "default"},
        },
    }


def _read_context(config: Config) -> dict[str, Any]:
    """Texts no longer than the positions, nor than a sliding window: no window is implemented that would bind."""
    windowed = config.get("use_sliding_window", config.get("sliding_window") is not None)
    window = config.get("sliding_window") if windowed else None
    return {"context": min(config["max_position_embeddings"], window or config["max_position_embeddings"])}


CONTEXT = Setting(_read_context, lambda model: {"max_position_embeddings": model.context or 2048})
# A window as wide as the context never binds.
WINDOW = Setting(lambda config: {}, lambda model: {"sliding_window": model.context or 2048})


def _read_biases(config: Config) -> dict[str, Any]:
    """Llama's flags: both or none."""
    attention, mlp = config.get("attention_bias", False), config.get("mlp_bias", False)
    if attention != mlp:
        raise KdError(f"config.json: attention_bias is {attention}, mlp_bias {mlp}; implemented: both alike")
    return {"biases": "all" if attention else "none"}


def _write_biases(model: Transformer) -> dict[str, Any]:
    if model.biases == "qkv":
        raise KdError("model.biases: 'qkv'; the format has 'all' or 'none'")
    return dict.fromkeys(("attention_bias", "mlp_bias"), model.biases == "all")


def _write_scale(model: Transformer) -> dict[str, Any]:
    """Gemma 3 has a whole number for the scale's inverse square."""
    scale = model.attention_scale or model.head_width**-0.5
    number = round(scale**-2)
    if abs(number**-0.5 - scale) > 1e-6 * scale:
        raise KdError(f"model.attention_scale: {scale}; the format has the inverse roots of whole numbers")
    return {"query_pre_attn_scalar": number}


SIZES = (
    same("layers", "num_hidden_layers"),
    same("d_model", "hidden_size"),
    same("d_ff", "intermediate_size"),
    same("heads", "num_attention_heads"),
    Setting(
        lambda config: {"kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"]},
        lambda model: {"num_key_value_heads": model.key_heads},
    ),
    Setting(
        lambda config: {"head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]},
        lambda model: {"head_dim": model.head_width},
    ),
    same("norm_epsilon", "rms_norm_eps", default=1e-6),
)
SHARED = (  # of all whose layers are Llama's
    fixed(
        norm="rms",
        positions="rotary",
        first_position=0,
        embedding_norm=False,
        head_scale=1.0,
        head_bias=False,
    ),
    only("quantization_config", None),
    only("use_cache", True, False),
)
PRE_NORM = fixed(norm_position="before", embedding_scale=False, attention_soft_cap=0.0, soft_cap=0.0, local=())
UNSCALED = fixed(attention_scale=0.0)

LAYER = "model.layers.{i}."
LLAMA_NAMES = {
    "embedding": plain("model.embed_tokens.weight"),
    "output": dense("lm_head.weight"),
    "decoder_norm.scale": plain("model.norm.weight"),
    "decoder_{i}.norm_self.scale": plain(LAYER + "input_layernorm.weight"),
    "decoder_{i}.norm_ffn.scale": plain(LAYER + "post_attention_layernorm.weight"),
    "decoder_{i}.self_attention.qkv.kernel": dense(*(f"{LAYER}self_attn.{x}_proj.weight" for x in "qkv")),
    "decoder_{i}.self_attention.qkv.bias": plain(*(f"{LAYER}self_attn.{x}_proj.bias" for x in "qkv")),
    "decoder_{i}.self_attention.out.kernel": dense(LAYER + "self_attn.o_proj.weight"),
    "decoder_{i}.self_attention.out.bias": plain(LAYER + "self_attn.o_proj.bias"),
    "decoder_{i}.ffn.in.kernel": dense(LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"),
    "decoder_{i}.ffn.in.bias": plain(LAYER + "mlp.gate_proj.bias", LAYER + "mlp.up_proj.bias"),
    "decoder_{i}.ffn.out.kernel": dense(LAYER + "mlp.down_proj.weight"),
    "decoder_{i}.ffn.out.bias": plain(LAYER + "mlp.down_proj.bias"),
}
HEAD_NORMS = {
    "decoder_{i}.self_attention.q_norm.scale": plain(LAYER + "self_attn.q_norm.weight"),
    "decoder_{i}.self_attention.k_norm.scale": plain(LAYER + "self_attn.k_norm.weight"),
}
ROTARY_BUFFERS = r".*rotary_emb\.inv_freq"

COMMON = (*SIZES, *SHARED, PRE_NORM, UNSCALED, ROPE, CONTEXT, choice("activation", "hidden_act", GATED))
LLAMA = Format(
    model_type="llama",
    class_name="LlamaForCausalLM",
    family=DecoderOnly,
    settings=(*COMMON, fixed(qk_norm=False), Setting(_read_biases, _write_biases), only("pretraining_tp", 1)),
    names=LLAMA_NAMES,
    ignored=ROTARY_BUFFERS,
    prefix="model.",
)
MISTRAL = dataclasses.replace(
    LLAMA,
    model_type="mistral",
    class_name="MistralForCausalLM",
    settings=(*COMMON, WINDOW, fixed(qk_norm=False, biases="none")),
)
QWEN2 = dataclasses.replace(
    LLAMA,
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    settings=(*COMMON, fixed(qk_norm=False, biases="qkv")),
)
QWEN3 = dataclasses.replace(
    LLAMA,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    settings=(*COMMON, fixed(qk_norm=True, biases="none"), only("attention_bias", False)),
    names=LLAMA_NAMES | HEAD_NORMS,
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
    family=DecoderOnly,
    settings=(
        *SIZES, *SHARED, CONTEXT, WINDOW, Setting(_read_two_ropes, _write_two_ropes),
        fixed(norm_position="both", embedding_scale=True, qk_norm=True, biases="none"),
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
        only("attention_bias", False), only("use_bidirectional_attention", False, None),
    ),
    names=LLAMA_NAMES | {path: plain(name, added=1.0) for path, name in GEMMA_NORMS.items()},
    ignored=ROTARY_BUFFERS,
    prefix="model.",
)  # fmt: skip

H = "transformer.h.{i}."
GPT2 = Format(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    family=DecoderOnly,
    settings=(
        same("layers", "n_layer"), same("d_model", "n_embd"), same("heads", "n_head"),
        Setting(
            lambda config: {"d_ff": config.get("n_inner") or 4 * config["n_embd"]},
            lambda model: {"n_inner": model.d_ff},
        ),
        same("context", "n_positions"), same("norm_epsilon", "layer_norm_epsilon", default=1e-5),
        choice("activation", "activation_function", {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
               "gelu": "gelu", "relu": "relu", "silu": "silu"}, default="gelu_new"),
        fixed(norm="layer", norm_position="before", positions="learned", biases="all", qk_norm=False, kv_heads=0,
              head_dim=0, attention_scale=0.0, attention_soft_cap=0.0, soft_cap=0.0, embedding_scale=False,
              embedding_norm=False, head_scale=1.0, head_bias=False, local=()),
        only("scale_attn_weights", True), only("scale_attn_by_inverse_layer_idx", False),
        only("add_cross_attention", False), only("quantization_config", None),
    ),
    names={
        "embedding": plain("transformer.wte.weight"),
        "decoder_positions": plain("transformer.wpe.weight"),
        "output": dense("lm_head.weight"),
        "decoder_{i}.self_attention.qkv.kernel": plain(H + "attn.c_attn.weight"),
        "decoder_{i}.self_attention.qkv.bias": plain(H + "attn.c_attn.bias"),
        "decoder_{i}.self_attention.out.kernel": plain(H + "attn.c_proj.weight"),
        "decoder_{i}.self_attention.out.bias": plain(H + "attn.c_proj.bias"),
        "decoder_{i}.ffn.in.kernel": plain(H + "mlp.c_fc.weight"),
        "decoder_{i}.ffn.in.bias": plain(H + "mlp.c_fc.bias"),
        "decoder_{i}.ffn.out.kernel": plain(H + "mlp.c_proj.weight"),
        "decoder_{i}.ffn.out.bias": plain(H + "mlp.c_proj.bias"),
        **{f"decoder_norm.{ours}": plain(f"transformer.ln_f.{theirs}")
           for ours, theirs in (("scale", "weight"), ("bias", "bias"))},
        **{f"decoder_{{i}}.norm_{ours}.{part}": plain(f"{H}{theirs}.{their_part}")
           for ours, theirs in (("self", "ln_1"), ("ffn", "ln_2"))
           for part, their_part in (("scale", "weight"), ("bias", "bias"))},
    },
    ignored=r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",
    prefix="transformer.",
)  # fmt: skip
FORMATS = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3, GPT2)
