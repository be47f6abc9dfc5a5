"""Students that start from the teacher's layers."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.students.init import FromTeacher, count_parameters, evenly_spaced_layers, init_from_teacher, layer_maps
from tests.helpers.batches import random_examples, to_batch

V = 11
TEACHER = EncoderDecoder(encoder_layers=3, decoder_layers=3, d_model=8, heads=2, d_ff=8, dropout=0.0)
PARAMS = TEACHER.build(V).init(jax.random.key(0))
INPUTS = to_batch(random_examples(0, [(4, 4), (2, 3)], V)).inputs


def student(**layers):
    return EncoderDecoder(**{"encoder_layers": 3, "decoder_layers": 3, "d_model": 8, "heads": 2, "d_ff": 8} | layers)


def test_layers_are_evenly_spaced():
    assert evenly_spaced_layers(6, 6) == (0, 1, 2, 3, 4, 5)
    assert evenly_spaced_layers(6, 3) == (0, 2, 5)
    assert evenly_spaced_layers(12, 2) == (0, 11)
    assert evenly_spaced_layers(4, 1) == (0,)
    # 3.67, 7.33 and 2.2, 4.4, 6.6, 8.8 are rounded; 2.5 and 5.5 to the even number.
    assert evenly_spaced_layers(12, 4) == (0, 4, 7, 11)
    assert evenly_spaced_layers(12, 6) == (0, 2, 4, 7, 9, 11)
    assert evenly_spaced_layers(6, 4) == (0, 2, 3, 5)
    assert evenly_spaced_layers(12, 3) == (0, 6, 11)


# (teacher's layers, student's) -> layers that DistilBART's authors copied (LAYERS_TO_COPY in their make_student.py).
DISTILBART = {
    (6, 2): (0, 5),
    (6, 3): (0, 2, 5),
    (12, 3): (0, 6, 11),
    (12, 6): (0, 2, 4, 7, 9, 11),
    (16, 2): (0, 15),
    (16, 3): (0, 8, 15),
    (16, 4): (0, 5, 10, 15),
    (16, 6): (0, 3, 6, 9, 12, 15),
}
CHOSEN_BY_HAND = {
    (6, 4): (0, 1, 3, 5),
    (12, 2): (0, 6),
    (12, 4): (0, 4, 8, 11),
    (12, 9): (0, 1, 2, 4, 5, 7, 9, 10, 11),
    (16, 8): (0, 2, 4, 6, 8, 10, 12, 15),
    (16, 9): (0, 1, 3, 5, 7, 9, 11, 13, 15),
    (16, 12): (0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15),
}


def test_evenly_spaced_layers_agree_with_distilbart_where_its_own_are():
    """Its other layers follow no rule; they can be named."""
    for depths, layers in DISTILBART.items():
        assert evenly_spaced_layers(*depths) == layers
    for (teacher_layers, student_layers), layers in CHOSEN_BY_HAND.items():
        assert evenly_spaced_layers(teacher_layers, student_layers) != layers
        teacher, small = (DecoderOnly(depth, d_model=8, heads=2, d_ff=8) for depth in (teacher_layers, student_layers))
        assert layer_maps(FromTeacher(decoder=layers), teacher, small) == {"decoder": layers}


def test_a_student_with_all_layers_equals_the_teacher():
    chex.assert_trees_all_equal(init_from_teacher(FromTeacher(), TEACHER, student(), PARAMS, V), PARAMS)


def test_layers_are_those_of_the_map():
    small = student(encoder_layers=2, decoder_layers=1)
    params = init_from_teacher(FromTeacher(encoder=(2, 0), decoder=(1,)), TEACHER, small, PARAMS, V)
    expected = jax.eval_shape(small.build(V).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, expected)
    chex.assert_trees_all_equal(params["encoder_0"], PARAMS["encoder_2"])
    chex.assert_trees_all_equal(params["decoder_0"], PARAMS["decoder_1"])


def test_removing_a_layer_without_effect_changes_nothing():
    without_effect = dict(PARAMS) | {"decoder_1": jax.tree.map(jnp.zeros_like, PARAMS["decoder_1"])}
    small = student(decoder_layers=2)
    params = init_from_teacher(FromTeacher(decoder=(0, 2)), TEACHER, small, without_effect, V)
    np.testing.assert_allclose(
        small.build(V).apply(params, INPUTS), TEACHER.build(V).apply(without_effect, INPUTS), atol=1e-5
    )


@pytest.mark.parametrize(
    "init, layers, message",
    [
        (FromTeacher(encoder=(0, 3)), {"encoder_layers": 2}, r"init\.encoder: expected layers in \[0, 2\], got 3"),
        (
            FromTeacher(encoder=(0,)),
            {"encoder_layers": 2},
            r"init\.encoder: expected .* 2 student layers, got 1 entries",
        ),
        (
            FromTeacher(),
            {"decoder_layers": 4},
            r"init\.decoder: expected one of the teacher's 3 layers for each of the 4 student layers",
        ),
        (FromTeacher(), {"d_model": 16}, "d_model"),
        (FromTeacher(), {"norm_epsilon": 1e-3}, "norm_epsilon"),
        (FromTeacher(), {"soft_cap": 30.0}, "soft_cap"),
    ],
)
def test_students_that_do_not_fit_are_refused(init, layers, message):
    with pytest.raises(KdError, match=message):
        init_from_teacher(init, TEACHER, student(**layers), PARAMS, V)


def test_a_decoder_only_student_has_the_layers_of_the_map():
    teacher, small = (DecoderOnly(layers, d_model=8, heads=2, d_ff=8, dropout=0.0) for layers in (4, 2))
    params = jax.eval_shape(teacher.build(V).init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), params)
    layers = init_from_teacher(FromTeacher(decoder=(3, 1)), teacher, small, params, V)
    assert layers == {name: params[name] for name in ("embedding", "decoder_norm")} | {
        "decoder_0": params["decoder_3"],
        "decoder_1": params["decoder_1"],
    }
    with pytest.raises(
        KdError, match=r"init\.encoder: expected \(\) for a decoder_only model without encoder, got \(0,\)"
    ):
        FromTeacher(encoder=(0,)).check(teacher, small)
    with pytest.raises(
        KdError, match="model: expected decoder_only, the teacher's family, for init=FromTeacher, got encoder_decoder"
    ):
        FromTeacher().check(teacher, student())


def test_count_parameters_outside_the_embeddings():
    total, outside = count_parameters(PARAMS)
    assert total - outside == V * 8
    learned = DecoderOnly(2, d_model=8, heads=2, d_ff=8, positions="learned", context=5, tied=False, head_bias=True)
    total, outside = count_parameters(jax.eval_shape(learned.build(V).init, jax.random.key(0)))
    assert total - outside == 2 * V * 8 + V + 5 * 8


def test_teacher_and_student_may_pad_the_vocabulary_to_different_multiples():
    padded = dataclasses.replace(TEACHER, vocab_multiple=16)

    def logits(model, params):
        network = model.build(V)
        return network.head(params).logits(network.apply(params, INPUTS))

    larger = init_from_teacher(FromTeacher(), TEACHER, padded, PARAMS, V)
    assert larger["embedding"].shape[0] == 16
    np.testing.assert_allclose(logits(padded, larger), logits(TEACHER, PARAMS), atol=1e-6)
    chex.assert_trees_all_equal(init_from_teacher(FromTeacher(), padded, TEACHER, larger, V), PARAMS)


def test_local_layers_remain_local():
    """A layer keeps the rotary angles with which it was trained."""
    teacher = DecoderOnly(layers=4, local=(0, 1, 3))
    assert layer_maps(FromTeacher(), teacher, DecoderOnly(layers=2, local=(0, 1))) == {"decoder": (0, 3)}
    with pytest.raises(KdError, match=r"model\.local: expected \(0,\) for the teacher's layers \(1, 2\), got \(0, 1\)"):
        layer_maps(FromTeacher(decoder=(1, 2)), teacher, DecoderOnly(layers=2, local=(0, 1)))


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"local": (0,), "window": 8, "unrotated": ()},
            r"unrotated: expected \(1,\) for the teacher's layers \(0, 3\)",
        ),
        ({"local": (0,), "window": 4, "unrotated": (1,)}, "window: expected 8"),
    ],
)
def test_windows_and_unrotated_layers_remain(fields, message):
    teacher = DecoderOnly(layers=4, local=(0, 1), window=8, unrotated=(3,))
    right = DecoderOnly(layers=2, local=(0,), window=8, unrotated=(1,))
    assert layer_maps(FromTeacher(), teacher, right) == {"decoder": (0, 3)}
    assert layer_maps(FromTeacher(decoder=(2, 3)), teacher, dataclasses.replace(right, local=(), window=0))
    with pytest.raises(KdError, match=rf"model\.{message}"):
        layer_maps(FromTeacher(), teacher, dataclasses.replace(right, **fields))
