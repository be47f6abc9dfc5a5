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
    read_choice,
    read_count,
    read_flag,
    read_number,
    required_value,
    same_value,
    show,
    tensors,
)
from kd_jax.models.rope import Linear, Llama3
from kd_jax.models.transformer import Transformer

KINDS = ("full_attention", "sliding_attention")  # of Gemma 3's layers
GATED = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}


def read_rope(key: str, value: Any, theta: Any, original: Any) -> tuple[float, Linear | Llama3 | None]:
    """Return (theta, scaling) of the rotary angles under a key; `theta` and `original` are what it may lack."""
    if not isinstance(value, dict):
        raise KdError(f"config.json: {key}: expected an object, got {show(value)}.")
    complete = {"rope_theta": theta, "original_max_position_embeddings": original, **value}
    if nested := [name for name, setting in complete.items() if isinstance(setting, dict)]:
        raise KdError(f"config.json: {key}.{nested[0]}: expected a number or text, got an object.")
    rope = {f"{key}.{name}": setting for name, setting in complete.items()}
    name = f"{key}.rope_type" if "rope_type" in value else f"{key}.type"
    kind = read_choice({name: "default", **rope}, name, {kind: kind for kind in ("default", "linear", "llama3")})
    if complete.get("partial_rotary_factor") not in (None, 1):
        raise KdError(f"config.json: {key}.partial_rotary_factor: expected 1, got {show(value)}.")
    theta = read_number(rope, f"{key}.rope_theta")
    if kind == "default":
        return theta, None
    factor = read_number(rope, f"{key}.factor")
    if kind == "linear":
        return theta, Linear(factor)
    low, high = (read_number(rope, f"{key}.{name}") for name in ("low_freq_factor", "high_freq_factor"))
    return theta, Llama3(factor, low, high, read_count(rope, f"{key}.original_max_position_embeddings"))


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
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    theta, original = config.get("rope_theta", 10_000.0), config["max_position_embeddings"]
    theta, scaling = read_rope(key, config.get(key) or {}, theta, original)
    return {"rope_theta": theta, "rope_scaling": scaling}


ROPE = Setting(
    _read_rope,
    lambda model: {"rope_parameters": {"rope_theta": model.rope_theta, **write_rope_scaling(model.rope_scaling)}},
)


def _read_two_ropes(config: Config) -> dict[str, Any]:
    """Return the rotary angles of Gemma 3, whose windowed layers have a base of their own and no scaling."""
    ropes: Any = config.get("rope_parameters") or {}
    if not isinstance(ropes, dict) or set(ropes) - set(KINDS):
        raise KdError(f"config.json: rope_parameters: expected {' and '.join(KINDS)}, got {show(ropes)}.")
    ropes = {kind: ropes.get(kind) or {} for kind in KINDS}
    keys = {kind: f"rope_parameters.{kind}" for kind in KINDS}
    if scaling := config.get("rope_scaling"):  # written by transformers 4
        if not isinstance(scaling, dict):
            raise KdError(f"config.json: rope_scaling: expected an object, got {show(scaling)}.")
        ropes["full_attention"] = {**ropes["full_attention"], **scaling}
        keys["full_attention"] = "rope_scaling"
    thetas = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
    (theta, scaling), (local_theta, local_scaling) = (
        read_rope(keys[kind], ropes[kind], config.get(*thetas[kind]), config["max_position_embeddings"])
        for kind in KINDS
    )
    if local_scaling is not None:
        raise KdError(
            "config.json: rope_parameters.sliding_attention: expected rope_type 'default', got "
            f"{show(ropes['sliding_attention'])}."
        )
    kinds = _read_layer_types(config)
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "local": tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention"),
        "local_rope_theta": local_theta,
    }


def _read_layer_types(config: Config) -> list[str]:
    """Return the kind of each layer of Gemma 3."""
    layers, kinds = read_count(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is None:
        pattern = read_count({"sliding_window_pattern": 6, **config}, "sliding_window_pattern")
        return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in KINDS for kind in kinds):
        raise KdError(
            f"config.json: layer_types: expected {' or '.join(KINDS)} for each of {layers} layers, got {show(kinds)}."
        )
    return kinds


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


def _read_window(config: Config) -> dict[str, Any]:
    """Return the maximum length of texts: no longer than a sliding window, because windows are not implemented."""
    context = read_count(config, "max_position_embeddings")
    if config["sliding_window"] is None or not read_flag({"use_sliding_window": True, **config}, "use_sliding_window"):
        return {"context": context}
    return {"context": min(context, read_count(config, "sliding_window"))}


def _write_context(model: Transformer) -> dict[str, Any]:
    return {"max_position_embeddings": model.context or 2048}


CONTEXT = Setting(lambda config: {"context": read_count(config, "max_position_embeddings")}, _write_context)
WINDOWED_CONTEXT = Setting(_read_window, _write_context)
# Mistral's window is written as wide as the context, so it has no effect.
WINDOW = Setting(lambda config: {}, lambda model: {"sliding_window": model.context or 2048})


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
    """Return the scale as Gemma 3 stores it: the inverse square, an integer."""
    scale = model.attention_scale or model.head_width**-0.5
    number = round(scale**-2)
    if abs(number**-0.5 - scale) > 1e-6 * scale:
        raise KdError(f"model.attention_scale: expected 1 / sqrt(n) of an integer n, got {scale}.")
    return {"query_pre_attn_scalar": number}


def _check_rotary_factor(config: Config) -> dict[str, Any]:
    if (factor := config.get("partial_rotary_factor")) not in (None, 1):
        raise KdError(f"config.json: partial_rotary_factor: expected 1, got {show(factor)}.")
    return {}


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
    Setting(_check_rotary_factor, lambda model: {}),
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

COMMON = (*SIZES, *SHARED, PRE_NORM, UNSCALED, ROPE, choice("activation", "hidden_act", GATED))
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
QWEN2_DEFAULTS |= {"use_sliding_window": False}
GEMMA3_DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "tie_word_embeddings": True,
}
LLAMA = Format(
    model_type="llama",
    class_name="LlamaForCausalLM",
    architecture_class=DecoderOnly,
    defaults=LLAMA_DEFAULTS,
    settings=(
        *COMMON,
        CONTEXT,
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
    settings=(*COMMON, WINDOWED_CONTEXT, WINDOW, fixed_fields(qk_norm=False, biases="none")),
)
QWEN2 = dataclasses.replace(
    LLAMA,
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    defaults=WINDOWED_DEFAULTS | QWEN2_DEFAULTS,
    settings=(*COMMON, WINDOWED_CONTEXT, fixed_fields(qk_norm=False, biases="qkv")),
)
QWEN3 = dataclasses.replace(
    LLAMA,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    defaults=WINDOWED_DEFAULTS | QWEN2_DEFAULTS | {"head_dim": 128},
    settings=(
        *COMMON,
        WINDOWED_CONTEXT,
        fixed_fields(qk_norm=True, biases="none"),
        required_value("attention_bias", False),
    ),
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
    defaults=WINDOWED_DEFAULTS | GEMMA3_DEFAULTS,
    settings=(
        *SIZES, *SHARED, WINDOWED_CONTEXT, WINDOW, Setting(_read_two_ropes, _write_two_ropes),
        fixed_fields(norm_position="both", embedding_scale=True, qk_norm=True, biases="none"),
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
FORMATS = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3, GPT2)
