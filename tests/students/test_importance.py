"""Importance of a teacher's parts: the formula, and what does not affect it."""

import functools

import jax
import numpy as np
import pytest

from kd_jax.batches.layouts import Bucket
from kd_jax.runtime.backends import make_devices
from kd_jax.students.importance import importance_step
from kd_jax.students.narrow import component_sizes
from kd_jax.tokenizers.sentencepiece import START
from tests.models.cases import FAMILIES, random_segments, small_network

LENGTHS = [(4, 3), (2, 6), (5, 1)]
BOTH = pytest.mark.parametrize("family", FAMILIES)


def make_batch(config, rows, bucket):
    """Return a batch with one segment in each of the first rows."""
    parts = random_segments(3, LENGTHS)
    return config.layout(START).batch([[part] for part in parts], rows, Bucket(*bucket), {})


@functools.cache
def step_of(family):
    config, model, _ = small_network(family, "qwen3")
    step = functools.partial(importance_step, model=model, head_width=config.head_width)
    return make_devices("jit").compile_sums(step)


@BOTH
def test_importance_equals_the_formula(family):
    """In loops over examples and tokens."""
    config, model, params = small_network(family, "qwen3")
    batch = make_batch(config, 3, (6, 8))
    sums = step_of(family)(params, batch)
    norms = {name for name in sums if name.endswith(".out")}
    assert norms and set(sums) - norms == set(component_sizes(config)) - {"channels"}
    _, taps = jax.jit(model.taps)(params, batch.inputs)
    for name, square_X in sums.items():
        stack = batch.inputs.encoder if name.startswith("encoder") else batch.inputs.decoder
        total_X = 0.0
        for b in range(3):
            x_TX = np.abs(np.asarray(taps[name], np.float64)[b][stack.segment_BT[b] > 0])
            if name.endswith("heads"):
                heads = [x_TX[:, start : start + config.head_width] for start in range(0, x_TX.shape[1], 6)]
                x_TX = np.stack([np.sqrt((x_Td**2).sum(1)) for x_Td in heads], axis=1)
            total_X += (sum(x_TX) / len(x_TX)) ** 2
        np.testing.assert_allclose(square_X, total_X, rtol=1e-4)


def test_a_teacher_in_bfloat16_is_summed_in_float32():
    """The mean of bfloat16 activations is not rounded."""
    config, model, params = small_network("decoder_only", "qwen3")
    half = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    batch = make_batch(config, 3, (6, 8))
    with jax.numpy_dtype_promotion("standard"):  # flax's norms compute in float32
        _, taps = jax.jit(model.taps)(half, batch.inputs)
        sums = step_of("decoder_only")(half, batch)
    x_BTX = np.abs(np.asarray(taps["decoder_0.norm_self.out"], np.float64))
    total_X = 0.0
    for b in range(3):
        x_TX = x_BTX[b][batch.inputs.decoder.segment_BT[b] > 0]
        total_X += x_TX.mean(0) ** 2
    assert sums["decoder_0.norm_self.out"].dtype == np.float32
    np.testing.assert_allclose(sums["decoder_0.norm_self.out"], total_X, rtol=1e-4)


@BOTH
def test_padding_does_not_count(family):
    config, _, params = small_network(family, "qwen3")
    plain, padded = (step_of(family)(params, make_batch(config, *size)) for size in ((3, (6, 8)), (5, (9, 11))))
    for name in plain:
        np.testing.assert_allclose(padded[name], plain[name], rtol=1e-4)


def test_parts_without_output_have_no_importance():
    config, _, params = small_network("decoder_only", "default")
    params = jax.tree.map(np.array, params)
    params["decoder_0"]["ffn"]["in"]["kernel"][:, config.d_ff + 5] = 0  # the gated half of neuron 5
    values = (config.heads + config.key_heads) * config.head_width
    params["decoder_1"]["self_attention"]["qkv"]["kernel"][:, values : values + config.head_width] = 0  # of head 0
    step = functools.partial(importance_step, model=config.build(29), head_width=config.head_width)
    sums = make_devices("jit").compile_sums(step)(params, make_batch(config, 3, (6, 8)))
    assert sums["decoder_0.ffn.neurons"].argmin() == 5 and sums["decoder_0.ffn.neurons"][5] == 0
    assert (sums["decoder_1.heads"] == 0).tolist() == [True] + [False] * (config.heads - 1)
