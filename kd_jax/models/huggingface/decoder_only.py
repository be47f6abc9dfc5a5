"""Decoder-only formats: Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi-3, SmolLM3, OLMo 2, GPT-2.

Checked against transformers 5.24.
"""

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
    read_count,
    read_flag,
    read_number,
    required_value,
    same_value,
    tensors,
)
from kd_jax.models.huggingface.rotary import (
    CONTEXT,
    UNROTATED,
    gemma2_kinds,
    qwen_kinds,
    read_two_ropes,
    rope,
    smollm3_kinds,
    uniform_kinds,
    windowed,
    write_gemma_windows,
    write_qwen_windows,
    write_smollm3_windows,
    write_two_ropes,
    write_uniform_window,
)
from kd_jax.models.transformer import Transformer

GATED = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}


def _read_biases(config: Config) -> dict[str, Any]:
    """Return the biases of Llama, which has them in attention and feed-forward layers or in neither."""
    attention, mlp = read_flag(config, "attention_bias"), read_flag(config, "mlp_bias")
    if attention != mlp:
        raise KdError(f"config.json: attention_bias, mlp_bias: expected equal values, got {attention} and {mlp}.")
    return {"biases": "all" if attention else "none"}


def _write_biases(model: Transformer) -> dict[str, Any]:
    if model.biases == "qkv":
        raise KdError("model.biases: expected 'all' or 'none', got 'qkv'.")
    return dict.fromkeys(("attention_bias", "mlp_bias"), model.biases == "all")


def _write_scale(model: Transformer) -> dict[str, Any]:
    """Return the scale as Gemma 2 and 3 store it: the inverse square, an integer."""
    scale = model.attention_scale or model.head_width**-0.5
    number = round(scale**-2)
    if abs(number**-0.5 - scale) > 1e-6 * scale:
        raise KdError(f"model.attention_scale: expected 1 / sqrt(n) of an integer n, got {scale}.")
    return {"query_pre_attn_scalar": number}


def _read_kv_heads(config: Config) -> dict[str, Any]:
    key = "num_attention_heads" if config["num_key_value_heads"] is None else "num_key_value_heads"
    return {"kv_heads": read_count(config, key)}


def _read_head_dim(config: Config) -> dict[str, Any]:
    if config["head_dim"] is None:
        return {"head_dim": read_count(config, "hidden_size") // read_count(config, "num_attention_heads")}
    return {"head_dim": read_count(config, "head_dim")}


def _read_caps(config: Config) -> dict[str, Any]:
    keys = {"soft_cap": "final_logit_softcapping", "attention_soft_cap": "attn_logit_softcapping"}
    return {field: 0.0 if config[key] is None else read_number(config, key) for field, key in keys.items()}


SIZES = (
    same_value("layers", "num_hidden_layers"),
    same_value("d_model", "hidden_size"),
    same_value("d_ff", "intermediate_size"),
    same_value("heads", "num_attention_heads"),
    Setting(_read_kv_heads, lambda model: {"num_key_value_heads": model.key_heads}),
    Setting(_read_head_dim, lambda model: {"head_dim": model.head_width}),
    same_value("norm_epsilon", "rms_norm_eps", read=read_number),
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
UNSCALED = fixed_fields(attention_scale=0.0, embedding_scale=False, attention_soft_cap=0.0, soft_cap=0.0)
PRE_NORM = fixed_fields(norm_position="before", qk_norm_joint=False)
ROTATED = fixed_fields(unrotated=())  # every layer
UNWINDOWED = fixed_fields(window=0, local=())

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

ROPE = rope()
COMMON = (*SIZES, *SHARED, UNSCALED, choice("activation", "hidden_act", GATED))
LLAMA_DEFAULTS: Config = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
WINDOWED_DEFAULTS = {**LLAMA_DEFAULTS, "sliding_window": 4096}
MISTRAL_DEFAULTS = {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
QWEN2_DEFAULTS = {"intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768}
QWEN2_DEFAULTS |= {"use_sliding_window": False, "max_window_layers": 28}
GEMMA2_DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "tie_word_embeddings": True,
}
GEMMA3_DEFAULTS = GEMMA2_DEFAULTS | {"max_position_embeddings": 131072}
GEMMA3_DEFAULTS |= dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping"))
PHI3_DEFAULTS = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}
OLMO2_DEFAULTS = {"rms_norm_eps": 1e-5}
SMOLLM3_DEFAULTS = {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2e6,
    "use_sliding_window": False,
    "sliding_window": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}
LLAMA = Format(
    model_type="llama",
    class_name="LlamaForCausalLM",
    architecture_class=DecoderOnly,
    defaults=LLAMA_DEFAULTS,
    settings=(
        *COMMON,
        PRE_NORM,
        ROTATED,
        ROPE,
        CONTEXT,
        UNWINDOWED,
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
    defaults=WINDOWED_DEFAULTS | MISTRAL_DEFAULTS,
    settings=(
        *COMMON,
        PRE_NORM,
        ROTATED,
        windowed(ROPE, uniform_kinds, write_uniform_window),
        fixed_fields(qk_norm=False, biases="none"),
    ),
)
QWEN_ROTARY = windowed(ROPE, qwen_kinds, write_qwen_windows)
QWEN2 = dataclasses.replace(
    LLAMA,
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    defaults=WINDOWED_DEFAULTS | QWEN2_DEFAULTS,
    settings=(*COMMON, PRE_NORM, ROTATED, QWEN_ROTARY, fixed_fields(qk_norm=False, biases="qkv")),
)
QWEN3 = dataclasses.replace(
    LLAMA,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    defaults=WINDOWED_DEFAULTS | QWEN2_DEFAULTS | {"head_dim": 128},
    settings=(
        *COMMON,
        PRE_NORM,
        ROTATED,
        QWEN_ROTARY,
        fixed_fields(qk_norm=True, biases="none"),
        required_value("attention_bias", False),
    ),
    mappings=LLAMA_MAPPINGS | HEAD_NORMS,
)

PHI3 = dataclasses.replace(
    LLAMA,
    model_type="phi3",
    class_name="Phi3ForCausalLM",
    defaults=LLAMA_DEFAULTS | PHI3_DEFAULTS,
    settings=(
        *COMMON,
        PRE_NORM,
        ROTATED,
        windowed(rope("default", partial=True), uniform_kinds, write_uniform_window),
        fixed_fields(qk_norm=False, biases="none"),
    ),
    mappings=LLAMA_MAPPINGS
    | {
        "decoder_{i}.self_attention.qkv.kernel": linear(LAYER + "self_attn.qkv_proj.weight"),
        "decoder_{i}.ffn.in.kernel": linear(LAYER + "mlp.gate_up_proj.weight"),
    },
)
SMOLLM3 = dataclasses.replace(
    LLAMA,
    model_type="smollm3",
    class_name="SmolLM3ForCausalLM",
    defaults=LLAMA_DEFAULTS | SMOLLM3_DEFAULTS,
    settings=(
        *COMMON,
        PRE_NORM,
        UNROTATED,
        windowed(ROPE, smollm3_kinds, write_smollm3_windows),
        fixed_fields(qk_norm=False),
        Setting(_read_biases, _write_biases),
    ),
)
OLMO2 = dataclasses.replace(
    LLAMA,
    model_type="olmo2",
    class_name="Olmo2ForCausalLM",
    defaults=LLAMA_DEFAULTS | OLMO2_DEFAULTS,
    settings=(
        *COMMON,
        ROTATED,
        ROPE,
        CONTEXT,
        UNWINDOWED,
        fixed_fields(norm_position="output", qk_norm=True, qk_norm_joint=True, biases="none"),
        required_value("attention_bias", False),
    ),
    mappings=LLAMA_MAPPINGS
    | HEAD_NORMS
    | {
        "decoder_{i}.norm_self.scale": tensors(LAYER + "post_attention_layernorm.weight"),
        "decoder_{i}.norm_ffn.scale": tensors(LAYER + "post_feedforward_layernorm.weight"),
    },
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
GEMMA = (
    *SIZES, *SHARED, ROTATED,
    fixed_fields(norm_position="both", embedding_scale=True, qk_norm_joint=False, biases="none"),
    choice("activation", "hidden_activation", GATED),
    Setting(
        lambda config: {"attention_scale": read_number(config, "query_pre_attn_scalar") ** -0.5},
        _write_scale,
    ),
    Setting(
        _read_caps,
        lambda model: {
            "final_logit_softcapping": model.soft_cap or None,
            "attn_logit_softcapping": model.attention_soft_cap or None,
        },
    ),
    required_value("attention_bias", False), required_value("use_bidirectional_attention", False, None),
)  # fmt: skip
GEMMA3 = Format(
    model_type="gemma3_text",
    class_name="Gemma3ForCausalLM",
    architecture_class=DecoderOnly,
    defaults=WINDOWED_DEFAULTS | GEMMA3_DEFAULTS,
    settings=(*GEMMA, Setting(read_two_ropes, write_two_ropes), fixed_fields(qk_norm=True)),
    mappings=LLAMA_MAPPINGS | {path: tensors(name, offset=1.0) for path, name in GEMMA_NORMS.items()},
    ignored_names=ROTARY_BUFFERS,
    prefix="model.",
)
GEMMA2 = dataclasses.replace(
    GEMMA3,
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    defaults=WINDOWED_DEFAULTS | GEMMA2_DEFAULTS,
    settings=(*GEMMA, windowed(ROPE, gemma2_kinds, write_gemma_windows), fixed_fields(qk_norm=False)),
)

H = "transformer.h.{i}."
GPT2 = Format(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    architecture_class=DecoderOnly,
    defaults={"n_layer": 12, "n_embd": 768, "n_head": 12, "n_inner": None, "n_positions": 1024,
              "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
    aliases={"hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
             "num_hidden_layers": "n_layer"},
    depth_keys=("n_layer",),
    settings=(
        same_value("layers", "n_layer"), same_value("d_model", "n_embd"), same_value("heads", "n_head"),
        Setting(
            lambda config: {"d_ff": 4 * read_count(config, "n_embd") if config["n_inner"] is None
                            else read_count(config, "n_inner")},
            lambda model: {"n_inner": model.d_ff},
        ),
        same_value("context", "n_positions"), same_value("norm_epsilon", "layer_norm_epsilon", read=read_number),
        choice("activation", "activation_function", {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
               "gelu": "gelu", "relu": "relu", "silu": "silu"}),
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
FORMATS = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, SMOLLM3, OLMO2, GPT2)
