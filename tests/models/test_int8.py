"""int8 weights: which arrays are quantised, their errors, and the network that reads them."""

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
from tests.models.cases import V, each_family, each_option, make_batch, pad_left, random_segments, small_network

tied_and_untied = pytest.mark.parametrize(  # tied with an output bias; untied
    "options", ["marian", pytest.param("t5", marks=pytest.mark.extended)]
)
HALF = 0.5 + 1e-4  # half a step, plus float32's rounding
POSITIONS = ("encoder_positions", "decoder_positions", "encoder_buckets", "decoder_buckets")


def by_path(params):
    """Return path of names -> array or QArray."""
    is_array = lambda x: not isinstance(x, dict)  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_array)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def steps_of(params):
    """Return path -> quantisation step of each channel; 0 for arrays that are not matrices."""
    steps = {}
    for path, x in by_path(params).items():
        is_matrix = x.ndim == 2 and path[-1] not in POSITIONS
        largest = np.abs(np.asarray(x, np.float64)).max(1 if path[-1] == "embedding" else 0, keepdims=True)
        steps[path] = largest / 127.5 if is_matrix else np.zeros([1] * x.ndim)
    return steps


def inputs_of(config):
    rows = make_batch(config, [[segment] for segment in random_segments(3, [(4, 3), (2, 5), (6, 8)])]).inputs
    return rows._replace(decoder=pad_left(rows.decoder))


@functools.cache
def run_network(config):
    """Return the jitted (params, inputs) -> (logits of all positions, logits of one step, hidden states, taps)."""
    model = config.build(V)

    def run(params, inputs):
        hidden_BTD, taps = model.taps(params, inputs)
        last_B = inputs.decoder.ids_BT[:, -1]
        logits_BV, _ = model.step(params, model.prefill(params, inputs, 2), last_B)
        return model.head(params).logits(model.apply(params, inputs)), logits_BV, hidden_BTD, taps

    return jax.jit(run)


@each_option
@each_family
def test_matrices_and_nothing_else_are_int8(family, options):
    """Positions, norms and biases are not matrices."""
    _, _, params = small_network(family, options)
    in_int8 = by_path(quantize(params))
    for path, x in by_path(params).items():
        if x.ndim == 2 and path[-1] not in POSITIONS:
            assert in_int8[path].qvalue.dtype == jnp.int8 and in_int8[path].qvalue.shape == x.shape
            channels = (x.shape[0], 1) if path[-1] == "embedding" else (1, x.shape[1])
            assert in_int8[path].scale.shape == channels and in_int8[path].scale.dtype == jnp.float32
        else:
            assert in_int8[path] is x
    assert in_int8.keys() == by_path(params).keys()


@each_option
@each_family
def test_error_of_a_weight_is_at_most_half_a_step(family, options):
    _, _, params = small_network(family, options)
    back, steps = by_path(dequantize(quantize(params))), steps_of(params)
    for path, x in by_path(params).items():
        error = np.abs(np.asarray(back[path], np.float64) - np.asarray(x, np.float64))
        assert (error <= HALF * steps[path]).all(), path


@settings(deadline=None)  # the first call compiles
@given(
    arrays.arrays(np.float32, (5, 3), elements=st.floats(-1, 1, width=32)),
    st.lists(st.sampled_from([0.0, 1e-6, 1.0, 1e6]), min_size=3, max_size=3),
)
def test_error_is_at_most_half_a_step_at_any_scale(unit_XY, sizes):
    matrix_XY = unit_XY * np.asarray(sizes, np.float32)[None]
    back_XY = np.asarray(dequantize(quantize({"kernel": matrix_XY}))["kernel"])
    step_Y = np.abs(matrix_XY).max(0).astype(np.float64) / 127.5  # in float32 it could be 0
    # qwix stores zeros for a column whose step would be close to the smallest float32.
    assert (np.abs(back_XY - matrix_XY) <= np.where(step_Y < 1.1e-19, 128, HALF) * step_Y).all()


@tied_and_untied
@each_family
def test_network_equals_the_float_network_of_rounded_weights(family, options):
    """Hidden states, logits, steps and taps, with weights dequantised by NumPy."""
    config, _, params = small_network(family, options)
    in_int8, inputs = quantize(params), inputs_of(config)
    is_matrix = lambda x: not isinstance(x, dict | jax.Array)  # noqa: E731
    times = lambda x: np.asarray(x.qvalue, np.float32) * np.asarray(x.scale) if is_matrix(x) else x  # noqa: E731
    on_grid = jax.tree.map(times, in_int8, is_leaf=is_matrix)
    ours, theirs = run_network(Int8(config))(in_int8, inputs), run_network(config)(on_grid, inputs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)
    before = run_network(config)(params, inputs)
    assert np.abs(before[0] - theirs[0]).max() > 1e-3  # more than the tolerance


@tied_and_untied
@each_family
def test_error_of_logits_is_bounded_by_the_steps(family, options):
    """To first order, with half a step in every weight in its worst direction; most errors cancel."""
    config, model, params = small_network(family, options)
    inputs, steps = inputs_of(config), steps_of(params)
    logits = lambda params: model.head(params).logits(model.apply(params, inputs))[:, -1]  # noqa: E731
    near_BV, exact_BV = (
        run_network(one)(p, inputs)[0][:, -1] for one, p in ((Int8(config), quantize(params)), (config, params))
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


def test_scales_have_the_dtype_of_the_parameters():
    kernel = quantize({"kernel": jnp.ones((4, 3), jnp.bfloat16)})["kernel"]
    assert kernel.scale.dtype == jnp.bfloat16 and dequantize({"kernel": kernel})["kernel"].dtype == jnp.bfloat16


def test_other_members_are_those_of_the_float_network():
    config = DecoderOnly(2, d_model=16, heads=4, d_ff=24, context=40)
    int8 = Int8(config)
    for name in ("family", "dropout", "d_model", "context", "layout"):
        assert getattr(int8, name) == getattr(config, name)
    assert int8.stacks() == config.stacks() and int8.widths() == config.widths()
    assert hash(int8) == hash(Int8(config)) and int8 == Int8(config)
    with pytest.raises(KdError, match="heads"):
        Int8(dataclasses.replace(config, heads=3)).check()


def test_error_without_qwix_has_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(KdError, match=r"int8: expected the package qwix, .* pip install 'kd_jax\[int8\]'"):
        quantize({"kernel": jnp.ones((2, 2))})
    with pytest.raises(KdError, match="qwix"):
        Int8(DecoderOnly()).check()
