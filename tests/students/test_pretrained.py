"""Students with the teacher's architecture in other sizes, and checks of pretrained folders."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.students.pretrained import FromHuggingFace, Smaller, select_vocab_rows

TEACHER = DecoderOnly(layers=6, d_model=32, heads=4, kv_heads=2, d_ff=64, local=(0, 1, 3))


def test_smaller_keeps_the_width_of_a_head():
    student = Smaller(d_model=16, heads=2, kv_heads=1).resolve(TEACHER)
    assert (student.layers, student.d_model, student.d_ff) == (6, 16, 64)
    assert student.head_width == TEACHER.head_width == 8


def test_smaller_of_a_teacher_without_grouped_heads_has_none():
    student = Smaller(heads=2).resolve(DecoderOnly(layers=1, d_model=32, heads=4, kv_heads=4))
    assert student.key_heads == student.heads == 2


def test_smaller_selects_the_local_layers_with_their_layers():
    assert Smaller(layers=3).resolve(TEACHER).local == (0,)  # layers 0, 2, 5


def test_smaller_keeps_unrotated_layers_and_drops_a_window_without_layers():
    teacher = dataclasses.replace(TEACHER, local=(0, 1, 3), window=8, unrotated=(3, 5))
    student = Smaller(layers=3).resolve(teacher)
    assert (student.local, student.window, student.unrotated) == ((0,), 8, (2,))
    student = Smaller(layers=2).resolve(dataclasses.replace(teacher, local=(1, 3)))  # layers 0 and 5
    assert (student.local, student.window, student.unrotated) == ((), 0, (1,))
    student.check()


def test_smaller_with_a_field_of_another_family_is_refused():
    with pytest.raises(
        KdError, match=r"model\.layers: expected 0, since a encoder_decoder teacher has no layers, got 2"
    ):
        Smaller(layers=2).resolve(EncoderDecoder(2, 2))


def test_vocabulary_rows_are_selected_in_every_array_with_tokens():
    params = {"embedding": jnp.arange(8.0).reshape(4, 2), "output": jnp.arange(8.0).reshape(2, 4), "norm": jnp.ones(2)}
    selected = select_vocab_rows(params, np.array([3, 0]))
    assert selected["embedding"].tolist() == [[6.0, 7.0], [0.0, 1.0]]
    assert selected["output"].tolist() == [[3.0, 0.0], [7.0, 4.0]]
    assert selected["norm"] is params["norm"]


def test_folders_that_are_not_the_models_are_refused(tmp_path):
    with pytest.raises(KdError, match=r"init\.folder: expected a local folder in Hugging Face's layout, got 'nowhere'"):
        FromHuggingFace("nowhere").check(None, None)
    with pytest.raises(KdError, match=r"init\.dtype: expected float32 or bfloat16, got 'float16'"):
        FromHuggingFace(str(tmp_path), dtype="float16").check(None, None)
