"""Convert a Llama's model.safetensors to GGUF, the file format of llama.cpp, in float32."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def interleave_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return a projection's rows with rotary pairs adjacent, as in llama.cpp; ours are half a head apart."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, folder: Path, tokens: list[str], job: dict[str, Any]) -> None:
    """Write the model of `folder` to the file `path`."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config.get("rope_parameters", {"rope_theta": 10_000.0})["rope_theta"])
    writer.add_vocab_size(job["vocab_size"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    special = {job["eos"], job["start"], job["pad"]}
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([control if i in special else normal for i in range(len(tokens))])
    writer.add_bos_token_id(job["start"])
    writer.add_eos_token_id(job["eos"])
    writer.add_add_bos_token(False)
    for name, weight in load_file(folder / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if stem in OUTSIDE:
            writer.add_tensor(f"{OUTSIDE[stem]}.weight", weight)
            continue
        _, _, layer, kind = stem.split(".", 3)
        if kind in ("self_attn.q_proj", "self_attn.k_proj"):
            weight = interleave_rotary(weight, heads if "q_proj" in kind else groups)
        writer.add_tensor(f"blk.{layer}.{NAMES[kind]}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
