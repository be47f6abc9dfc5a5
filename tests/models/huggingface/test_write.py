"""The format of an architecture, and writing models in it."""

import dataclasses
import filecmp

import jax
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.huggingface.read import read_model
from kd_jax.models.huggingface.write import find_format, write_model
from kd_jax.models.rope import Dynamic, Yarn
from kd_jax.students.init import random_params
from kd_jax.students.pretrained import Smaller
from tests.models.huggingface.shapes import MODELS, V

T5 = {"d_model": 16, "norm": "rms", "positions": "relative", "attention_scale": 1.0, "embedding_scale": False}
T5 |= {"norm_epsilon": 1e-6}
GEMMA = {"norm_position": "both", "embedding_scale": True, "qk_norm": True, "activation": "geglu"}


def test_defaults_have_a_format():
    assert find_format(EncoderDecoder()).model_type == "pegasus" and find_format(DecoderOnly()).model_type == "llama"


@pytest.mark.parametrize("teacher", [EncoderDecoder(d_model=128, heads=4), DecoderOnly(d_model=128, heads=4)])
def test_a_narrow_student_has_its_teachers_format(teacher, tmp_path):
    """The width of a head is named in it, and equals the default."""
    student = Smaller(d_model=32, heads=1, d_ff=64).resolve(teacher)
    assert student.head_dim == 32
    named = dataclasses.replace(student, kv_heads=1)
    unnamed = dataclasses.replace(student, head_dim=0, kv_heads=0)
    params = random_params(named, V, jax.random.key(0))
    for name, model in {"named": named, "unnamed": unnamed}.items():
        assert find_format(model) is find_format(teacher)
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, model, params, {"pad_token_id": 0}, V)
    files = [path.name for path in (tmp_path / "named").iterdir()]
    assert files and all(filecmp.cmp(tmp_path / "named" / name, tmp_path / "unnamed" / name, False) for name in files)


def test_error_names_the_obstacle_of_each_format():
    with pytest.raises(KdError, match="an architecture of transformers, got none; llama: model.norm: expected 'rms'"):
        find_format(DecoderOnly(norm="layer"))


@pytest.mark.parametrize(
    "model, message",
    [
        (EncoderDecoder(**T5, head_scale=0.5), "t5: model.head_scale: expected 1.0 or 0.25, got 0.5"),
        (DecoderOnly(**GEMMA, attention_scale=0.3), "gemma3_text: model.attention_scale: expected 1 / sqrt(n)"),
        (DecoderOnly(**GEMMA, rope_scaling=Yarn(4.0, 64)), "gemma3_text: model.rope_scaling: expected None or Linear"),
        (DecoderOnly(**GEMMA, rotary_fraction=0.5), "gemma3_text: model.rotary_fraction: expected 1.0, got 0.5"),
        (DecoderOnly(rotary_fraction=0.5, unrotated=(0,)), "phi3: model.unrotated: expected (), got (0,)"),
        (DecoderOnly(rotary_fraction=0.5, unrotated=(0,)), "smollm3: model.rotary_fraction: expected 1.0, got 0.5"),
        (DecoderOnly(rotary_fraction=0.5, rope_scaling=Dynamic(2.0)), "phi3: model.rope_scaling: expected None, got"),
        (DecoderOnly(local=(0,)), "mistral: model.local: expected () without a window, got (0,)"),
        (
            DecoderOnly(local=(0,), window=8, qk_norm=True, biases="qkv"),
            "mistral: model.local: expected () or (0, 1, 2, 3, 4, 5)",
        ),
        (
            DecoderOnly(local=(0,), window=8, local_rope_theta=5.0),
            "smollm3: model.local_rope_theta: expected rope_theta = 10000.0, got 5.0",
        ),
        (
            DecoderOnly(local=(0,), window=8, rope_scaling=Yarn(4.0, 64)),
            "smollm3: model.rope_scaling: expected None beside a window, got Yarn",
        ),
        (DecoderOnly(norm_position="output", qk_norm=True), "olmo2: model.qk_norm_joint: expected True, got False"),
    ],
)
def test_inexpressible_field_raises(model, message):
    with pytest.raises(KdError) as error:
        find_format(model)
    assert message in str(error.value)


def test_padding_rows_are_dropped_and_absent_biases_are_zeros(tmp_path):
    model = dataclasses.replace(MODELS["encoder_decoder"], vocab_multiple=64)
    params = random_params(model, V, jax.random.key(0))
    write_model(tmp_path, model, params, {"pad_token_id": 0}, V)
    read_back, read_params = read_model(tmp_path)
    assert read_back.vocab_rows == V and read_back.biases == "all" and read_back.head_bias
    np.testing.assert_array_equal(read_params["embedding"], np.asarray(params["embedding"])[:V])
    assert not read_params["encoder_0"]["ffn"]["in"]["bias"].any() and not read_params["output_bias"].any()
    np.testing.assert_array_equal(
        read_params["encoder_0"]["ffn"]["in"]["kernel"], params["encoder_0"]["ffn"]["in"]["kernel"]
    )
