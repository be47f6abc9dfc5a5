"""Students from teachers."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.students.init import FromTeacher, count_parameters, layer_maps, shrink, spaced
from tests.helpers.batches import random_examples, to_batch

V = 11
TEACHER = EncoderDecoder(encoder_layers=3, decoder_layers=3, d_model=8, heads=2, d_ff=8, dropout=0.0)
PARAMS = TEACHER.build(V).init(jax.random.key(0))
INPUTS = to_batch(random_examples(0, [(4, 4), (2, 3)], V)).inputs


def student(**layers):
    return EncoderDecoder(**{"encoder_layers": 3, "decoder_layers": 3, "d_model": 8, "heads": 2, "d_ff": 8} | layers)


def test_spaced():
    assert spaced(6, 6) == (0, 1, 2, 3, 4, 5)
    assert spaced(6, 3) == (0, 2, 5)
    assert spaced(12, 2) == (0, 11)
    assert spaced(4, 1) == (0,)


def test_all_layers_is_the_teacher():
    chex.assert_trees_all_equal(shrink(FromTeacher(), TEACHER, student(), PARAMS, V), PARAMS)


def test_the_map_is_followed():
    small = student(encoder_layers=2, decoder_layers=1)
    params = shrink(FromTeacher(encoder=(2, 0), decoder=(1,)), TEACHER, small, PARAMS, V)
    wanted = jax.eval_shape(small.build(V).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, wanted)
    chex.assert_trees_all_equal(params["encoder_0"], PARAMS["encoder_2"])
    chex.assert_trees_all_equal(params["decoder_0"], PARAMS["decoder_1"])


def test_a_teacher_whose_dropped_layer_adds_nothing_loses_nothing():
    silent = dict(PARAMS) | {"decoder_1": jax.tree.map(jnp.zeros_like, PARAMS["decoder_1"])}
    small = student(decoder_layers=2)
    params = shrink(FromTeacher(decoder=(0, 2)), TEACHER, small, silent, V)
    np.testing.assert_allclose(small.build(V).apply(params, INPUTS), TEACHER.build(V).apply(silent, INPUTS), atol=1e-5)


@pytest.mark.parametrize(
    "init, layers, message",
    [
        (FromTeacher(encoder=(0, 3)), {"encoder_layers": 2}, "layer 3"),
        (FromTeacher(encoder=(0,)), {"encoder_layers": 2}, "1 entries"),
        (FromTeacher(), {"decoder_layers": 4}, "name a teacher layer"),
        (FromTeacher(), {"d_model": 16}, "d_model"),
        (FromTeacher(), {"norm_epsilon": 1e-3}, "norm_epsilon"),
        (FromTeacher(), {"soft_cap": 30.0}, "soft_cap"),
    ],
)
def test_what_does_not_fit_is_refused(init, layers, message):
    with pytest.raises(KdError, match=message):
        shrink(init, TEACHER, student(**layers), PARAMS, V)


def test_a_decoder_only_student_has_its_teachers_layers():
    teacher, small = (DecoderOnly(layers, d_model=8, heads=2, d_ff=8, dropout=0.0) for layers in (4, 2))
    params = jax.eval_shape(teacher.build(V).init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), params)
    layers = shrink(FromTeacher(decoder=(3, 1)), teacher, small, params, V)
    assert layers == {name: params[name] for name in ("embedding", "decoder_norm")} | {
        "decoder_0": params["decoder_3"],
        "decoder_1": params["decoder_1"],
    }
    with pytest.raises(KdError, match=r"init\.encoder: \(0,\); a decoder_only model has no encoder"):
        FromTeacher(encoder=(0,)).check(teacher, small)
    with pytest.raises(KdError, match="wants one family"):
        FromTeacher().check(teacher, student())


def test_parameters_are_counted_outside_the_embeddings():
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

    larger = shrink(FromTeacher(), TEACHER, padded, PARAMS, V)
    assert larger["embedding"].shape[0] == 16
    np.testing.assert_allclose(logits(padded, larger), logits(TEACHER, PARAMS), atol=1e-6)
    chex.assert_trees_all_equal(shrink(FromTeacher(), padded, TEACHER, larger, V), PARAMS)


def test_local_layers_stay_local():
    """A layer goes on with the angles that it was trained with."""
    teacher = DecoderOnly(layers=4, local=(0, 1, 3))
    assert layer_maps(FromTeacher(), teacher, DecoderOnly(layers=2, local=(0, 1))) == {"decoder": (0, 3)}
    with pytest.raises(KdError, match=r"model.local: \(0, 1\); the layers \(1, 2\) of the teacher want \(0,\)"):
        layer_maps(FromTeacher(decoder=(1, 2)), teacher, DecoderOnly(layers=2, local=(0, 1)))
