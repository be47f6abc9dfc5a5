"""Small random models, saved by transformers. Importing this skips the test without torch or transformers."""

import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

V = 96
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 64, **IDS}
BART = {"vocab_size": V, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 48}
BART |= {"decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, **IDS}
BART |= {"max_position_embeddings": 64, "decoder_start_token_id": 1, "forced_eos_token_id": None}
T5 = {"vocab_size": V, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 1, **IDS}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 48}
YARN |= {"beta_fast": 2.0, "beta_slow": 0.5}
WINDOW = 5  # shorter than the rows of the tests
BIASED = {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True}

MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "llama_biased": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, **BIASED)),
    "llama3": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, rope_parameters=LLAMA3)),
    "llama_linear": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0})
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=None, head_dim=8)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA, tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**LLAMA, head_dim=16)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **(LLAMA | {"num_hidden_layers": 7}), head_dim=16, query_pre_attn_scalar=24, sliding_window=64
        )
    ),
    "gemma3_window": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **LLAMA, head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "mistral_window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=WINDOW)),
    "qwen2_window": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**LLAMA, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen3_window": lambda: hf.Qwen3ForCausalLM(
        hf.Qwen3Config(
            **LLAMA,
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "llama_yarn": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, rope_parameters=YARN)),
    "qwen3_yarn": lambda: hf.Qwen3ForCausalLM(
        hf.Qwen3Config(
            **LLAMA,
            head_dim=16,
            rope_parameters=YARN | {"attention_factor": 0.7, "truncate": False},
        )
    ),
    "llama_dynamic": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**LLAMA, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})
    ),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(
            **(LLAMA | {"num_hidden_layers": 3}),
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=WINDOW,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    ),
    "phi3": lambda: hf.Phi3ForCausalLM(
        hf.Phi3Config(
            **LLAMA,
            sliding_window=WINDOW,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        )
    ),
    "smollm3": lambda: hf.SmolLM3ForCausalLM(
        hf.SmolLM3Config(**(LLAMA | {"num_hidden_layers": 4}), tie_word_embeddings=False)
    ),
    "smollm3_window": lambda: hf.SmolLM3ForCausalLM(
        hf.SmolLM3Config(**LLAMA, use_sliding_window=True, sliding_window=WINDOW, no_rope_layers=[0, 1])
    ),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**LLAMA)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, **IDS)
    ),
    "marian": lambda: hf.MarianMTModel(
        hf.MarianConfig(**BART, activation_function="swish", scale_embedding=True, decoder_vocab_size=V)
    ),
    "pegasus": lambda: hf.PegasusForConditionalGeneration(
        hf.PegasusConfig(**BART, activation_function="relu", scale_embedding=True)
    ),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)),
    "m2m100": lambda: hf.M2M100ForConditionalGeneration(
        hf.M2M100Config(**(BART | {"pad_token_id": 1, "bos_token_id": 0, "decoder_start_token_id": 2}))
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5_gated": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, **GATED)),
    "mt5": lambda: hf.MT5ForConditionalGeneration(hf.MT5Config(**T5, **GATED)),
}


def save_random(name, folder):
    """Save a model whose parameters are all random, so no bias is zero, and return it."""
    torch.manual_seed(0)
    network = MODELS[name]().eval()
    with torch.no_grad():
        for parameter, x in network.named_parameters():
            if "embed_positions" not in parameter or name == "bart":
                x.add_(0.1 * torch.randn_like(x))
        for buffer, x in network.named_buffers():
            if buffer == "final_logits_bias":
                x.add_(torch.randn_like(x))
    network.save_pretrained(folder)
    return network
