"""int8 weights: which arrays they are, how far from the float ones, and that the network is the same but for them."""

import dataclasses
import functools
import sys

import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.int8 import Int8, dequantize, quantize
from tests.models.cases import FAMILIES, OPTIONS, V, batch_of, case, on_the_left, segments

EVERY = pytest.mark.parametrize("options", OPTIONS)
BOTH = pytest.mark.parametrize("family", FAMILIES)
TIED = pytest.mark.parametrize("options", ["marian", "t5"])  # tied with an output bias; untied
HALF = 0.5 + 1e-4  # of a step, and what float32 rounds
POSITIONS = ("encoder_positions", "decoder_positions", "encoder_buckets", "decoder_buckets")


def by_path(params):
    """Path of names -> array, or what stands for one."""
    is_array = lambda x: not isinstance(x, dict)  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_array)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def steps_of(params):
    """Path -> the step between the numbers that 8 bits hold, of each channel; 0 for what is no matrix."""
    steps = {}
    for path, x in by_path(params).items():
        is_matrix = x.ndim == 2 and path[-1] not in POSITIONS
        largest = np.abs(np.asarray(x, np.float64)).max(1 if path[-1] == "embedding" else 0, keepdims=True)
        steps[path] = largest / 127.5 if is_matrix else np.zeros([1] * x.ndim)
    return steps


def inputs_of(config):
    rows = batch_of(config, [[segment] for segment in segments(3, [(4, 3), (2, 5), (6, 8)])]).inputs
    return rows._replace(decoder=on_the_left(rows.decoder))


@functools.cache
def writing(config):
    """(params, inputs) -> (logits of every place, logits of the step behind the last one, taps), compiled."""
    model = config.build(V)

    def run(params, inputs):
        hidden_BTD, taps = model.taps(params, inputs)
        last_B = inputs.decoder.ids_BT[:, -1]
        logits_BV, _ = model.step(params, model.prefill(params, inputs, 2), last_B)
        return model.head(params).logits(model.apply(params, inputs)), logits_BV, hidden_BTD, taps

    return jax.jit(run)


@EVERY
@BOTH
def test_every_matrix_is_int8_and_nothing_else(family, options):
    """A matrix multiplies activations or is looked up by tokens; positions, norms and biases do neither."""
    _, _, params = case(family, options)
    in_int8 = by_path(quantize(params))
    for path, x in by_path(params).items():
        if x.ndim == 2 and path[-1] not in POSITIONS:
            assert in_int8[path].qvalue.dtype == jnp.int8 and in_int8[path].qvalue.shape == x.shape
            channels = (x.shape[0], 1) if path[-1] == "embedding" else (1, x.shape[1])
            assert in_int8[path].scale.shape == channels and in_int8[path].scale.dtype == jnp.float32
        else:
            assert in_int8[path] is x
    assert in_int8.keys() == by_path(params).keys()


@EVERY
@BOTH
def test_a_weight_is_off_by_half_a_step_of_its_channel(family, options):
    _, _, params = case(family, options)
    back, steps = by_path(dequantize(quantize(params))), steps_of(params)
    for path, x in by_path(params).items():
        error = np.abs(np.asarray(back[path], np.float64) - np.asarray(x, np.float64))
        assert (error <= HALF * steps[path]).all(), path


@settings(deadline=None)  # the first call compiles
@given(
    arrays.arrays(np.float32, (5, 3), elements=st.floats(-1, 1, width=32)),
    st.lists(st.sampled_from([0.0, 1e-6, 1.0, 1e6]), min_size=3, max_size=3),
)
def test_columns_of_any_size_are_off_by_half_a_step(unit_XY, sizes):
    matrix_XY = unit_XY * np.asarray(sizes, np.float32)[None]
    back_XY = np.asarray(dequantize(quantize({"kernel": matrix_XY}))["kernel"])
    step_Y = np.abs(matrix_XY).max(0).astype(np.float64) / 127.5  # as a float32 it could be 0
    # qwix keeps a column as zeros whose step would be next to float32's smallest numbers.
    assert (np.abs(back_XY - matrix_XY) <= np.where(step_Y < 1.1e-19, 128, HALF) * step_Y).all()


@TIED
@BOTH
def test_the_network_is_that_of_the_rounded_weights(family, options):
    """Integers times scales by NumPy, through the float network: the same hidden states, logits, steps and taps."""
    config, _, params = case(family, options)
    in_int8, inputs = quantize(params), inputs_of(config)
    is_matrix = lambda x: not isinstance(x, dict | jax.Array)  # noqa: E731
    times = lambda x: np.asarray(x.qvalue, np.float32) * np.asarray(x.scale) if is_matrix(x) else x  # noqa: E731
    on_grid = jax.tree.map(times, in_int8, is_leaf=is_matrix)
    ours, theirs = writing(Int8(config))(in_int8, inputs), writing(config)(on_grid, inputs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)
    before = writing(config)(params, inputs)
    assert np.abs(before[0] - theirs[0]).max() > 1e-3  # which the tolerance would not have let pass


@TIED
@BOTH
def test_logits_are_off_by_no_more_than_the_steps_allow(family, options):
    """To first order: half a step in every weight, each in its worst direction; in truth most cancel."""
    config, model, params = case(family, options)
    inputs, steps = inputs_of(config), steps_of(params)
    logits = lambda params: model.head(params).logits(model.apply(params, inputs))[:, -1]  # noqa: E731
    near_BV, exact_BV = (
        writing(one)(p, inputs)[0][:, -1] for one, p in ((Int8(config), quantize(params)), (config, params))
    )
    gradients = by_path(jax.device_get(jax.jit(jax.jacrev(logits))(params)))  # [B, V, ...]
    bound_BV = sum(np.abs(gradients[path] * HALF * steps[path]).reshape(*exact_BV.shape, -1).sum(-1) for path in steps)
    error_BV = np.abs(near_BV - exact_BV)
    assert (error_BV <= bound_BV).all() and error_BV.mean() < 0.2 * bound_BV.mean()


@pytest.mark.parametrize("config", [EncoderDecoder(), DecoderOnly(), DecoderOnly(tied=False, biases="all")])
def test_parameters_take_about_a_quarter(config):
    size = lambda model: sum(  # noqa: E731
        x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    )
    assert 0.25 < size(Int8(config).build(4000)) / size(config.build(4000)) < 0.27


def test_what_is_trained_in_bfloat16_stays_in_it():
    kernel = quantize({"kernel": jnp.ones((4, 3), jnp.bfloat16)})["kernel"]
    assert kernel.scale.dtype == jnp.bfloat16 and dequantize({"kernel": kernel})["kernel"].dtype == jnp.bfloat16


def test_all_but_the_model_is_the_float_networks():
    config = DecoderOnly(2, d_model=16, heads=4, d_ff=24, context=40)
    int8 = Int8(config)
    for name in ("family", "dropout", "d_model", "context", "layout"):
        assert vars(type(int8))[name].fget(int8) == {**vars(type(config)), **vars(config)}[name]
    assert int8.stacks() == config.stacks() and int8.widths() == config.widths()
    assert {int8: "one program"}[Int8(config)] == "one program"
    with pytest.raises(KdError, match="heads"):
        Int8(dataclasses.replace(config, heads=3)).check()


def test_without_qwix_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(KdError, match=r"int8: wants qwix, .* pip install 'kd_jax\[int8\]'"):
        quantize({"kernel": jnp.ones((2, 2))})
    with pytest.raises(KdError, match="qwix"):
        Int8(DecoderOnly()).check()
