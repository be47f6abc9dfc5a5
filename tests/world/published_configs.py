"""config.json of published models, shortened to the keys that may matter, and the sizes that their papers give."""

from kd_jax.models.rope import Llama3

T5_SMALL = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_ff": 2048, "d_kv": 64, "d_model": 512,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
    "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "n_positions": 512, "num_heads": 8, "num_layers": 6,
    "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32, "vocab_size": 32128,
    "task_specific_params": {"translation_en_to_fr": {"early_stopping": True, "max_length": 300, "num_beams": 4,
                                                      "prefix": "translate English to French: "}},
}  # fmt: skip
T5_BASE = T5_SMALL | {"d_ff": 3072, "d_model": 768, "num_heads": 12, "num_layers": 12}
T5_3B = T5_SMALL | {"d_ff": 16384, "d_kv": 128, "d_model": 1024, "num_heads": 32, "num_layers": 24}
FLAN_T5_SMALL = T5_SMALL | {
    "d_ff": 1024, "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "is_gated_act": True,
    "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "relative_attention_max_distance": 128,
    "tie_word_embeddings": False, "use_cache": True,
}  # fmt: skip
OPUS_MT_EN_DE = {
    "architectures": ["MarianMTModel"], "model_type": "marian", "_num_labels": 3, "activation_dropout": 0.0,
    "activation_function": "swish", "add_bias_logits": False, "add_final_layer_norm": False, "attention_dropout": 0.0,
    "bad_words_ids": [[58100]], "bos_token_id": 0, "classif_dropout": 0.0, "d_model": 512,
    "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0, "decoder_layers": 6,
    "decoder_start_token_id": 58100, "dropout": 0.1, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048,
    "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0, "forced_eos_token_id": 0,
    "extra_pos_embeddings": 58101, "is_encoder_decoder": True, "max_length": 512, "max_position_embeddings": 512,
    "normalize_before": False, "normalize_embedding": False, "num_beams": 6, "num_hidden_layers": 6,
    "pad_token_id": 58100, "scale_embedding": True, "static_position_embeddings": True, "vocab_size": 58101,
}  # fmt: skip
BART_BASE = {
    "architectures": ["BartForConditionalGeneration"], "model_type": "bart", "activation_dropout": 0.1,
    "activation_function": "gelu", "add_bias_logits": False, "add_final_layer_norm": False, "attention_dropout": 0.1,
    "bos_token_id": 0, "classifier_dropout": 0.0, "d_model": 768, "decoder_attention_heads": 12,
    "decoder_ffn_dim": 3072, "decoder_layers": 6, "decoder_start_token_id": 2, "dropout": 0.1, "early_stopping": True,
    "encoder_attention_heads": 12, "encoder_ffn_dim": 3072, "encoder_layers": 6, "eos_token_id": 2,
    "forced_eos_token_id": 2, "forced_bos_token_id": 0, "gradient_checkpointing": False, "is_encoder_decoder": True,
    "max_position_embeddings": 1024, "no_repeat_ngram_size": 3, "normalize_before": False,
    "normalize_embedding": True, "num_beams": 4, "num_hidden_layers": 6, "pad_token_id": 1, "scale_embedding": False,
    "use_cache": True, "vocab_size": 50265,
}  # fmt: skip
BART_LARGE_CNN = BART_BASE | {
    "_num_labels": 3, "d_model": 1024, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096, "decoder_layers": 12,
    "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "encoder_layers": 12, "length_penalty": 2.0,
    "max_length": 142, "min_length": 56, "num_hidden_layers": 12, "output_past": True, "prefix": " ",
    "vocab_size": 50264,
}  # fmt: skip
PEGASUS_XSUM = {
    "architectures": ["PegasusForConditionalGeneration"], "model_type": "pegasus", "activation_dropout": 0.1,
    "activation_function": "relu", "add_bias_logits": False, "add_final_layer_norm": True, "attention_dropout": 0.1,
    "bos_token_id": 0, "d_model": 1024, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
    "decoder_layerdrop": 0.0, "decoder_layers": 16, "decoder_start_token_id": 0, "dropout": 0.1,
    "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "encoder_layerdrop": 0.0, "encoder_layers": 16,
    "eos_token_id": 1, "extra_pos_embeddings": 0, "force_bos_token_to_be_generated": False, "forced_eos_token_id": 1,
    "is_encoder_decoder": True, "length_penalty": 0.6, "max_length": 64, "max_position_embeddings": 512,
    "normalize_before": True, "normalize_embedding": False, "num_beams": 8, "num_hidden_layers": 16,
    "pad_token_id": 0, "scale_embedding": True, "static_position_embeddings": True, "vocab_size": 96103,
}  # fmt: skip
M2M100_418M = {
    "architectures": ["M2M100ForConditionalGeneration"], "model_type": "m2m_100", "activation_dropout": 0.0,
    "activation_function": "relu", "attention_dropout": 0.1, "bos_token_id": 0, "d_model": 1024,
    "decoder_attention_heads": 16, "decoder_ffn_dim": 4096, "decoder_layerdrop": 0.05, "decoder_layers": 12,
    "decoder_start_token_id": 2, "dropout": 0.1, "early_stopping": True, "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096, "encoder_layerdrop": 0.05, "encoder_layers": 12, "eos_token_id": 2,
    "gradient_checkpointing": False, "init_std": 0.02, "is_encoder_decoder": True, "max_length": 200,
    "max_position_embeddings": 1024, "num_beams": 5, "num_hidden_layers": 12, "pad_token_id": 1,
    "scale_embedding": True, "use_cache": True, "vocab_size": 128112,
}  # fmt: skip
NLLB_600M = M2M100_418M | {"vocab_size": 256206, "max_length": 200, "tokenizer_class": "NllbTokenizer"}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
    "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 50257,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.0417,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "num_attention_heads": 9,
    "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
QWEN_2_5_05B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
    "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
GEMMA2_2B = {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26,
    "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
PHI3_MINI_4K = {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_dropout": 0.0, "bos_token_id": 1,
    "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "attention_bias": False,
    "vocab_size": 32064,
}  # fmt: skip
SMOLLM3_3B = {
    "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False,
    "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
    "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004, "pretraining_tp": 2,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
    "torch_dtype": "bfloat16", "use_cache": False, "use_sliding_window": False, "vocab_size": 128256,
}  # fmt: skip
OLMO2_1B = {
    "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "attention_bias": False, "attention_dropout": 0.0,
    "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 16, "num_hidden_layers": 16,
    "num_key_value_heads": 16, "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 500000, "tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": False,
    "vocab_size": 100352,
}  # fmt: skip
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False,
    "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid",
    "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
    "intermediate_size": 6912, "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26,
    "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
GEMMA3_270M = {
    **{key: value for key, value in GEMMA3_1B.items() if key != "sliding_window_pattern"},
    "_sliding_window_pattern": 6, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "use_bidirectional_attention": False,
    "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0,
}  # fmt: skip

LLAMA_SHAPE = {"norm": "rms", "norm_position": "before", "positions": "rotary", "activation": "swiglu"}
CONFIGS = {
    "t5-small": (T5_SMALL, {"encoder_layers": 6, "decoder_layers": 6, "d_ff": 2048, "heads": 8, "head_dim": 64,
                            "activation": "relu", "head_scale": 512**-0.5, "biases": "none", "norm": "rms"}),
    "t5-base": (T5_BASE, {"encoder_layers": 12, "d_model": 768, "heads": 12, "activation": "relu"}),
    "t5-3b": (T5_3B, {"encoder_layers": 24, "d_ff": 16384, "heads": 32, "head_dim": 128, "activation": "relu"}),
    "flan-t5-small": (FLAN_T5_SMALL, {"decoder_layers": 8, "heads": 6, "activation": "geglu", "head_scale": 1.0}),
    "opus-mt-en-de": (OPUS_MT_EN_DE, {"encoder_layers": 6, "decoder_layers": 6, "d_model": 512, "heads": 8,
                                      "activation": "silu", "norm_position": "after", "embedding_scale": True,
                                      "positions": "sinusoidal", "context": 512, "head_bias": True}),
    "bart-base": (BART_BASE, {"encoder_layers": 6, "d_model": 768, "activation": "gelu", "positions": "learned",
                              "norm_position": "after", "embedding_norm": True, "embedding_scale": False}),
    "bart-large-cnn": (BART_LARGE_CNN, {"decoder_layers": 12, "d_model": 1024, "d_ff": 4096, "context": 1024}),
    "pegasus-xsum": (PEGASUS_XSUM, {"encoder_layers": 16, "activation": "relu", "norm_position": "before",
                                    "positions": "sinusoidal", "embedding_norm": False, "embedding_scale": True}),
    "m2m100_418M": (M2M100_418M, {"encoder_layers": 12, "first_position": 2, "positions": "timing",
                                  "embedding_scale": True, "head_bias": False, "activation": "relu"}),
    "nllb-200-distilled-600M": (NLLB_600M, {"decoder_layers": 12, "d_model": 1024, "context": 1024}),
    "gpt2": (GPT2, {"layers": 12, "d_model": 768, "d_ff": 3072, "activation": "gelu_tanh", "positions": "learned",
                    "biases": "all", "context": 1024, "norm_epsilon": 1e-5}),
    "Llama-3.2-1B": (LLAMA_3_2_1B, LLAMA_SHAPE | {"layers": 16, "kv_heads": 8, "head_dim": 64, "context": 131072,
                                                  "rope_scaling": Llama3(32.0, 1.0, 4.0, 8192),
                                                  "rope_theta": 5e5, "norm_epsilon": 1e-5}),
    "SmolLM2-135M": (SMOLLM2_135M, LLAMA_SHAPE | {"layers": 30, "d_model": 576, "heads": 9, "kv_heads": 3,
                                                  "head_dim": 64, "rope_theta": 1e5, "rope_scaling": None}),
    "Qwen2.5-0.5B": (QWEN_2_5_05B, LLAMA_SHAPE | {"layers": 24, "biases": "qkv", "kv_heads": 2, "context": 32768}),
    "Qwen3-0.6B": (QWEN3_06B, LLAMA_SHAPE | {"layers": 28, "biases": "none", "qk_norm": True, "head_dim": 128}),
    "Mistral-7B-v0.1": (MISTRAL_7B, LLAMA_SHAPE | {"layers": 32, "kv_heads": 8, "d_ff": 14336, "context": 32768,
                                                "window": 4096, "local": tuple(range(32))}),
    "gemma-2-2b": (GEMMA2_2B, {"layers": 26, "kv_heads": 4, "head_dim": 256, "context": 8192, "window": 4096,
                               "local": tuple(range(0, 26, 2)), "soft_cap": 30.0, "attention_soft_cap": 50.0,
                               "local_rope_theta": 1e4, "norm_position": "both", "qk_norm": False}),
    "Phi-3-mini-4k": (PHI3_MINI_4K, LLAMA_SHAPE | {"layers": 32, "kv_heads": 32, "head_dim": 96, "window": 2047,
                                                   "local": tuple(range(32)), "rotary_fraction": 1.0}),
    "SmolLM3-3B": (SMOLLM3_3B, LLAMA_SHAPE | {"layers": 36, "kv_heads": 4, "rope_theta": 5e6, "context": 65536,
                                              "unrotated": tuple(range(3, 36, 4)), "local": (), "window": 0}),
    "OLMo-2-1B": (OLMO2_1B, LLAMA_SHAPE | {"layers": 16, "d_model": 2048, "norm_position": "output",
                                           "qk_norm": True, "qk_norm_joint": True, "rope_theta": 5e5}),
    "gemma-3-1b": (GEMMA3_1B, {"layers": 26, "kv_heads": 1, "head_dim": 256, "rope_theta": 1e6, "context": 32768,
                               "local_rope_theta": 1e4, "local": tuple(i for i in range(26) if i % 6 != 5),
                               "window": 512, "attention_scale": 1 / 16, "norm_position": "both",
                               "activation": "geglu"}),
    "gemma-3-270m": (GEMMA3_270M, {"layers": 18, "d_model": 640, "d_ff": 2048, "heads": 4,
                                   "local": tuple(i for i in range(18) if i % 6 != 5)}),
}  # fmt: skip
