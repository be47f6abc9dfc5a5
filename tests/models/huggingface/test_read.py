"""Folders that are not as they should be: one line each, which names what is wrong."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.huggingface import files
from kd_jax.models.huggingface.read import read, read_architecture
from kd_jax.models.huggingface.write import find_format, write
from kd_jax.models.rope import Linear
from kd_jax.students.init import random_params
from tests.models.huggingface.shapes import MODELS, V

KEY_MODEL = MODELS["decoder_only"]
T5 = {"d_model": 16, "norm": "rms", "positions": "relative", "attention_scale": 1.0, "embedding_scale": False}
T5 |= {"norm_epsilon": 1e-6}
GEMMA = {"norm_position": "both", "embedding_scale": True, "qk_norm": True, "activation": "geglu"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small Llama as we write it."""
    folder = tmp_path_factory.mktemp("llama")
    write(folder, KEY_MODEL, random_params(KEY_MODEL, V, jax.random.key(0)), {}, V)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(written, tmp_path / "copy")


def set_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_tensors(folder, change):
    tensors = load_file(folder / files.SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / files.SINGLE_FILE)


CONFIGS = {  # a setting that is not implemented -> what the line says
    "model_type is 'mixtral'; implemented: bart, gemma3_text,": {"model_type": "mixtral"},
    "rope_type is 'yarn'; implemented: 'default', 'linear', 'llama3'": {
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0}
    },
    "hidden_act is 'relu2'; implemented: 'silu'": {"hidden_act": "relu2"},
    "attention_bias is True, mlp_bias False; implemented: both alike": {"attention_bias": True},
    "quantization_config is {'bits': 4}; implemented: None": {"quantization_config": {"bits": 4}},
    "pretraining_tp is 2; implemented: 1": {"pretraining_tp": 2},
    "num_hidden_layers is missing": {"num_hidden_layers": None},
    "model.head_dim: 3; rotary positions turn pairs": {"num_attention_heads": 5, "num_key_value_heads": 5}
    | {"head_dim": None},
}


@pytest.mark.parametrize("line", CONFIGS)
def test_a_setting_that_is_not_implemented_is_named(folder, line):
    set_config(folder, **CONFIGS[line])
    with pytest.raises(KdError) as error:
        read(folder)
    assert line in str(error.value)


def test_what_version_4_wrote_is_read(folder):
    """`rope_theta` and `rope_scaling` apart, with `type` for `rope_type`."""
    set_config(folder, rope_parameters=None, rope_theta=5000.0, rope_scaling={"type": "linear", "factor": 2.0})
    model = read_architecture(folder)
    assert (model.rope_theta, model.rope_scaling) == (5000.0, Linear(2.0))


def test_a_window_bounds_the_texts(folder):
    """None is implemented, so none may bind."""
    set_config(folder, model_type="mistral", sliding_window=48)
    assert read_architecture(folder).context == 48
    set_config(folder, sliding_window=None)
    assert read_architecture(folder).context == KEY_MODEL.context


def remove_config(folder):
    (folder / "config.json").unlink()


def cut(folder):
    path = folder / files.SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])


def pickled_alone(folder):
    (folder / files.SINGLE_FILE).rename(folder / "pytorch_model.bin")


def escaping(folder):
    (folder / files.INDEX).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))


def missing_shard(folder):
    (folder / files.INDEX).write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))


def without_a_tensor(folder):
    change_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))


def with_another(folder):
    change_tensors(folder, lambda tensors: tensors.update({"model.layers.0.mlp.router": np.zeros(3, np.float32)}))


def misshaped(folder):
    name = "model.layers.0.mlp.down_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: np.zeros((16, 23), np.float32)}))


SPOILT = {
    remove_config: "no config.json; wanted a folder in Hugging Face's layout",
    cut: "model.safetensors: cut or damaged",
    pickled_alone: "neither model.safetensors nor model.safetensors.index.json; wanted safetensors",
    escaping: "'../other.safetensors' is not a file of the folder",
    missing_shard: "model-2.safetensors: cut or damaged",
    without_a_tensor: "tensors missing: model.norm.weight",
    with_another: "tensors that the architecture has not: model.layers.0.mlp.router",
    misshaped: "model.layers.0.mlp.down_proj.weight [16, 23] for decoder_0.ffn.out.kernel [24, 16]",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_folder_is_refused(folder, spoil):
    spoil(folder)
    with pytest.raises(KdError) as error:
        read(folder)
    assert SPOILT[spoil] in str(error.value)


def test_positions_that_are_no_sinusoids_are_refused(tmp_path):
    model = MODELS["encoder_decoder"]
    write(tmp_path, model, random_params(model, V, jax.random.key(0)), {}, V)
    assert read(tmp_path)[0].positions == "sinusoidal"
    name = "model.encoder.embed_positions.weight"
    change_tensors(tmp_path, lambda tensors: tensors.update({name: tensors[name] + 0.1}))
    with pytest.raises(KdError, match=f"{name} does not hold sinusoids"):
        read(tmp_path)


def test_a_file_of_the_bare_model_is_read(folder):
    """Without the prefix, as LlamaModel saves itself."""

    def bare(tensors):
        for name in [name for name in tensors if name.startswith("model.")]:
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    before = read(folder)[1]
    change_tensors(folder, bare)
    np.testing.assert_array_equal(
        read(folder)[1]["decoder_0"]["ffn"]["in"]["kernel"], before["decoder_0"]["ffn"]["in"]["kernel"]
    )


def test_every_default_has_a_format_and_what_has_none_is_told():
    assert find_format(EncoderDecoder()).model_type == "pegasus" and find_format(DecoderOnly()).model_type == "llama"
    with pytest.raises(KdError, match="no architecture of transformers has this shape; llama: model.norm: 'layer'"):
        find_format(DecoderOnly(norm="layer"))


@pytest.mark.parametrize(
    "model, line",
    [
        (EncoderDecoder(**T5, head_scale=0.5), "t5: model.head_scale: 0.5; the format has 1.0 or 0.25"),
        (DecoderOnly(**GEMMA, attention_scale=0.3), "gemma3_text: model.attention_scale: 0.3"),
    ],
)
def test_a_number_that_a_format_cannot_say_is_refused_not_rounded(model, line):
    with pytest.raises(KdError) as error:
        find_format(model)
    assert line in str(error.value)


def test_padding_rows_and_absent_biases(tmp_path):
    """Rows that only pad the vocabulary are left out; biases that the format cannot leave out are zeros."""
    model = dataclasses.replace(MODELS["encoder_decoder"], vocab_multiple=64)
    params = random_params(model, V, jax.random.key(0))
    write(tmp_path, model, params, {"pad_token_id": 0}, V)
    again, theirs = read(tmp_path)
    assert again.vocab_rows == V and again.biases == "all" and again.head_bias
    np.testing.assert_array_equal(theirs["embedding"], np.asarray(params["embedding"])[:V])
    assert not theirs["encoder_0"]["ffn"]["in"]["bias"].any() and not theirs["output_bias"].any()
    np.testing.assert_array_equal(
        theirs["encoder_0"]["ffn"]["in"]["kernel"], params["encoder_0"]["ffn"]["in"]["kernel"]
    )
