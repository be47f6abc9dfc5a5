"""The defaults of each family are architectures of transformers: with the same parameters, the same logits."""

import jax
import numpy as np
import pytest

from kd_jax.data.layouts import Bucket
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from tests.batches import random_examples, to_batch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V = 29
SIZES = {"d_model": 16, "heads": 4, "d_ff": 24, "dropout": 0.0}
PEGASUS = {"layers": 2, "attention_heads": 4, "ffn_dim": 24}  # of either stack


def ours(config):
    """(random parameters, logits, inputs)."""
    batch = to_batch(random_examples(0, [(5, 7), (3, 4)], V), Bucket(5, 7), config.layout)
    model, rng = config.build(V), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    logits = jax.jit(lambda p, i: model.head(p).logits(model.apply(p, i)))(params, batch.inputs)
    return params, np.asarray(logits), batch.inputs


def load(network, kernels, others):
    """The network with our arrays by transformers' names; what has none is a bias of zeros, or sinusoids."""
    arrays = {f"{name}.weight": kernel.T for name, kernel in kernels.items()} | others
    state = {name: x if "embed_positions" in name else torch.zeros_like(x) for name, x in network.state_dict().items()}
    network.load_state_dict(state | {name: torch.tensor(x) for name, x in arrays.items()})
    return network.eval()


def test_decoder_only_is_llama():
    config = DecoderOnly(layers=2, kv_heads=2, tied=False, **SIZES)
    params, logits_BTV, inputs = ours(config)
    kernels = {"lm_head": params["output"]}
    others = {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["decoder_norm"]["scale"]}
    for i in range(2):
        layer, name = params[f"decoder_{i}"], f"model.layers.{i}"
        q, k, v = np.split(layer["self_attention"]["qkv"]["kernel"], [16, 24], axis=1)
        gate, up = np.split(layer["ffn"]["in"]["kernel"], 2, axis=1)
        kernels |= {
            f"{name}.self_attn.q_proj": q,
            f"{name}.self_attn.k_proj": k,
            f"{name}.self_attn.v_proj": v,
            f"{name}.self_attn.o_proj": layer["self_attention"]["out"]["kernel"],
            f"{name}.mlp.gate_proj": gate,
            f"{name}.mlp.up_proj": up,
            f"{name}.mlp.down_proj": layer["ffn"]["out"]["kernel"],
        }
        others |= {
            f"{name}.input_layernorm.weight": layer["norm_self"]["scale"],
            f"{name}.post_attention_layernorm.weight": layer["norm_ffn"]["scale"],
        }
    network = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=config.norm_epsilon,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        want = load(network, kernels, others)(torch.tensor(np.asarray(inputs.decoder.ids_BT, np.int64))).logits
    real_BT = np.asarray(inputs.decoder.segment_BT) > 0
    np.testing.assert_allclose(logits_BTV[real_BT], want.numpy()[real_BT], atol=1e-4)


def test_encoder_decoder_is_pegasus():
    params, logits_BTV, inputs = ours(EncoderDecoder(2, 2, **SIZES))
    shared = "model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"
    kernels, others = {}, {f"{name}.weight": params["embedding"] for name in shared}
    for stack in ("encoder", "decoder"):
        norms = {"layer_norm": params[f"{stack}_norm"]}
        for i in range(2):
            layer, name = params[f"{stack}_{i}"], f"layers.{i}"
            norms |= {f"{name}.self_attn_layer_norm": layer["norm_self"], f"{name}.final_layer_norm": layer["norm_ffn"]}
            products = {"fc1": layer["ffn"]["in"]["kernel"], "fc2": layer["ffn"]["out"]["kernel"]}
            attention = {"self_attn": (layer["self_attention"]["qkv"]["kernel"], layer["self_attention"]["out"])}
            if stack == "decoder":
                cross = layer["cross_attention"]
                norms[f"{name}.encoder_attn_layer_norm"] = layer["norm_cross"]
                attention["encoder_attn"] = np.concatenate([cross["q"]["kernel"], cross["kv"]], 1), cross["out"]
            for kind, (qkv, out) in attention.items():
                parts = zip("qkv", np.split(qkv, 3, axis=1), strict=True)
                products |= {f"{kind}.{part}_proj": kernel for part, kernel in parts}
                products[f"{kind}.out_proj"] = out["kernel"]
            kernels |= {f"model.{stack}.{name}.{part}": kernel for part, kernel in products.items()}
        for name, norm in norms.items():
            others |= {f"model.{stack}.{name}.weight": norm["scale"], f"model.{stack}.{name}.bias": norm["bias"]}
    sizes = {f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in PEGASUS.items()}
    network = transformers.PegasusForConditionalGeneration(
        transformers.PegasusConfig(vocab_size=V, d_model=16, scale_embedding=True, activation_function="relu", **sizes)
    )
    source, target = inputs.encoder, inputs.decoder
    with torch.no_grad():
        want = load(network, kernels, others)(
            input_ids=torch.tensor(np.asarray(source.ids_BT, np.int64)),
            attention_mask=torch.tensor(np.asarray(source.segment_BT, np.int64)),
            decoder_input_ids=torch.tensor(np.asarray(target.ids_BT, np.int64)),
        ).logits
    real_BT = np.asarray(target.segment_BT) > 0
    np.testing.assert_allclose(logits_BTV[real_BT], want.numpy()[real_BT], atol=1e-4)
