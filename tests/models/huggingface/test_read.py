"""Reading folders in Hugging Face's layout, and the errors of invalid ones."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kd_jax.errors import KdError
from kd_jax.models.huggingface import files
from kd_jax.models.huggingface.read import read_architecture, read_model
from kd_jax.models.huggingface.write import write_model
from kd_jax.models.rope import Linear, Yarn
from kd_jax.students.init import random_params
from tests.models.huggingface.shapes import MODELS, V

LLAMA = MODELS["decoder_only"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Return the folder of a small Llama."""
    folder = tmp_path_factory.mktemp("llama")
    write_model(folder, LLAMA, random_params(LLAMA, V, jax.random.key(0)), {}, V)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """Return a copy that a test may change."""
    return shutil.copytree(original, tmp_path / "copy")


def set_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_tensors(folder, change):
    tensors = load_file(folder / files.SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / files.SINGLE_FILE)


UNSUPPORTED = {  # part of the message -> keys of config.json
    "model_type: expected one of bart, gemma2, gemma3_text,": {"model_type": "mixtral"},
    "rope_type: expected 'default' or 'linear' or 'llama3' or 'yarn' or 'dynamic', got 'longrope'": {
        "rope_parameters": {"rope_type": "longrope", "factor": 2.0}
    },
    "rope_parameters.rope_type: expected 'default', got 'longrope'": {
        "model_type": "phi3",
        "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
    },
    "rope_parameters.rope_type: expected 'default', got 'yarn'": {  # transformers takes it for longrope
        "model_type": "phi3",
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0},
    },
    "full_attention.rope_type: expected 'default' or 'linear' or 'llama3', got 'yarn'": {
        "model_type": "gemma3_text",
        "rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}},
    },
    "rope_parameters.attention_factor: expected a number above 0 and below 1e12, got 0": {
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0}
    },
    "rope_parameters.truncate: expected true or false, got 1": {
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}
    },
    "rope_parameters, sliding_window: expected no scaling of angles beside a window of 48": {
        "model_type": "mistral",
        "rope_parameters": {"rope_type": "linear", "factor": 2.0},
        "sliding_window": 48,
    },
    "partial_rotary_factor: expected 1, got 0.5": {"partial_rotary_factor": 0.5},
    "rope_parameters.partial_rotary_factor: expected 1, got 0.5": {
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}
    },
    "model.rotary_fraction: expected an even number of rotated channels of 4, got 3 by 0.75": {
        "model_type": "phi3",
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75},
    },
    "use_sliding_window, sliding_window: expected true and an integer, since layer_types has sliding_attention": {
        "model_type": "qwen3",
        "layer_types": ["sliding_attention"],
    },
    "sliding_window: expected an integer of at least 1, got None": {"model_type": "gemma2", "sliding_window": None},
    "no_rope_layers: expected 0 or 1 for each of 1 layers, got [2]": {
        "model_type": "smollm3",
        "no_rope_layers": [2],
    },
    "attention_bias: expected False, got True": {"model_type": "olmo2", "attention_bias": True},
    "hidden_act: expected 'silu' or 'gelu_pytorch_tanh', got 'relu2'": {"hidden_act": "relu2"},
    "attention_bias, mlp_bias: expected equal values, got True and False": {"attention_bias": True},
    "quantization_config: expected None, got {'bits': 4}": {"quantization_config": {"bits": 4}},
    "pretraining_tp: expected 1, got 2": {"pretraining_tp": 2},
    "num_hidden_layers: expected an integer of at least 1, got None": {"num_hidden_layers": None},
    "model.head_dim: expected an even width for rotary positions, got 3": {
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": None,
    },
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_unsupported_setting_is_named(folder, message):
    set_config(folder, **UNSUPPORTED[message])
    with pytest.raises(KdError) as error:
        read_model(folder)
    assert message in str(error.value)


def test_config_of_transformers_4_is_read(folder):
    """`rope_theta` and `rope_scaling` are separate keys, with `type` instead of `rope_type`."""
    set_config(folder, rope_parameters=None, rope_theta=5000.0, rope_scaling={"type": "linear", "factor": 2.0})
    model = read_architecture(folder)
    assert (model.rope_theta, model.rope_scaling) == (5000.0, Linear(2.0))


WINDOWS = {  # keys of config.json -> the window
    "shorter": ({"sliding_window": 48}, 48),
    "as long as the context": ({"sliding_window": 64}, 0),
    "null": ({"sliding_window": None}, 0),
    "default of 4,096": ({}, 0),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_sliding_window_that_is_shorter_than_the_context_is_read(folder, name):
    keys, window = WINDOWS[name]
    set_config(folder, model_type="mistral", **keys)
    model = read_architecture(folder)
    assert (model.context, model.window, model.local) == (64, window, (0,) if window else ())


YARNS = {  # keys of rope_parameters -> fields that differ from the defaults
    "defaults": ({}, {"original": 64}),
    "sizes": (
        {"original_max_position_embeddings": 16, "beta_fast": 8, "beta_slow": 2.0, "truncate": False},
        {"original": 16, "high": 8, "low": 2.0, "truncate": False},
    ),
    "nulls": ({"beta_fast": None, "beta_slow": 0, "attention_factor": None, "mscale": 2.0}, {"original": 64}),
    "attention factor": ({"attention_factor": 0.5, "mscale": 2.0, "mscale_all_dim": 1.0}, {"magnitude": 0.5}),
    "mscale": ({"mscale": 2.0, "mscale_all_dim": 1.0}, {"magnitude": 1.2 / 1.1}),
}


@pytest.mark.parametrize("name", YARNS)
def test_settings_of_yarn_are_read_and_written(folder, tmp_path, name):
    """With a factor of e, so its logarithm is 1."""
    keys, fields = YARNS[name]
    set_config(folder, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": math.e, **keys})
    model, params = read_model(folder)
    scaling = Yarn(math.e, **{"original": 64, **fields})
    assert model.rope_scaling == dataclasses.replace(scaling, magnitude=pytest.approx(scaling.magnitude))
    (tmp_path / "written").mkdir()
    write_model(tmp_path / "written", model, params, {}, V)
    assert read_architecture(tmp_path / "written") == model


def remove_config(folder):
    (folder / "config.json").unlink()


def truncate(folder):
    path = folder / files.SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])


def keep_only_pickle(folder):
    (folder / files.SINGLE_FILE).rename(folder / "pytorch_model.bin")


def name_file_outside(folder):
    (folder / files.SINGLE_FILE).unlink()
    (folder / files.INDEX).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))


def name_missing_shard(folder):
    (folder / files.SINGLE_FILE).unlink()
    (folder / files.INDEX).write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))


def remove_tensor(folder):
    change_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))


def add_tensor(folder):
    change_tensors(folder, lambda tensors: tensors.update({"model.layers.0.mlp.router": np.zeros(3, np.float32)}))


def change_shape(folder):
    name = "model.layers.0.mlp.down_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: np.zeros((16, 23), np.float32)}))


INVALID = {  # a change of the folder -> part of the message
    remove_config: "expected a folder in Hugging Face's layout, got one without config.json",
    truncate: "model.safetensors: expected a safetensors file, got a missing or damaged one",
    keep_only_pickle: "expected model.safetensors or model.safetensors.index.json, got neither",
    name_file_outside: "weight_map: expected names of files in the folder, got '../other.safetensors'",
    name_missing_shard: "model-2.safetensors: expected a safetensors file, got a missing or damaged one",
    remove_tensor: "expected all tensors of the architecture, got none called model.norm.weight",
    add_tensor: "expected only tensors of the architecture, got also model.layers.0.mlp.router",
    change_shape: "model.layers.0.mlp.down_proj.weight [16, 23] for decoder_0.ffn.out.kernel [24, 16]",
}


@pytest.mark.parametrize("change", INVALID, ids=lambda change: change.__name__)
def test_invalid_folder_raises(folder, change):
    change(folder)
    with pytest.raises(KdError) as error:
        read_model(folder)
    assert INVALID[change] in str(error.value)


def test_positions_other_than_sinusoids_raise(tmp_path):
    model = MODELS["encoder_decoder"]
    write_model(tmp_path, model, random_params(model, V, jax.random.key(0)), {}, V)
    assert read_model(tmp_path)[0].positions == "sinusoidal"
    name = "model.encoder.embed_positions.weight"
    change_tensors(tmp_path, lambda tensors: tensors.update({name: tensors[name] + 0.1}))
    with pytest.raises(KdError, match=f"{name}: expected sinusoids, got other positions"):
        read_model(tmp_path)


def test_file_of_the_bare_model_is_read(folder):
    """Names lack the prefix, as LlamaModel saves them."""

    def remove_prefix(tensors):
        for name in [name for name in tensors if name.startswith("model.")]:
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    before = read_model(folder)[1]
    change_tensors(folder, remove_prefix)
    np.testing.assert_array_equal(
        read_model(folder)[1]["decoder_0"]["ffn"]["in"]["kernel"], before["decoder_0"]["ffn"]["in"]["kernel"]
    )
