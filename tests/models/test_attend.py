"""Kernels and blocks of attention: against an explicit softmax, plain attention, and on the platforms they are for."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from kd_jax.models.attend import (
    KERNELS,
    Scores,
    Visibility,
    attend,
    attend_in_blocks,
    attend_splash,
    attend_triton,
    attention_of,
    choose,
)
from kd_jax.models.positions import BUCKETS
from kd_jax.runtime.mesh import Mesh, MeshDevices
from kd_jax.runtime.target import lowering_for, target_platform
from tests.helpers.platforms import tracing_for

HEADS, WIDTH = 4, 8
INTERPRETED = {
    "blocks": attend_in_blocks,
    "splash": functools.partial(attend_splash, interpret=True),
    "triton": functools.partial(attend_triton, interpret=True),
}
# name -> (kernels, T, S, key heads, visibility's options, scores)
CASES = {
    "packed": (("blocks", "splash", "triton"), 300, 300, 4, {"causal": True}, Scores()),
    "grouped": (("blocks", "splash", "triton"), 256, 256, 2, {"causal": True}, Scores()),
    "both sides": (("blocks", "splash", "triton"), 200, 200, 4, {}, Scores(scale=0.3)),
    "cross": (("blocks", "splash"), 300, 150, 4, {}, Scores()),
    "window": (("blocks", "splash"), 400, 400, 2, {"causal": True, "window": 70}, Scores()),
    "window of one": (("blocks",), 200, 200, 2, {"causal": True, "window": 1}, Scores()),
    "window beyond the row": (("blocks",), 200, 200, 2, {"causal": True, "window": 500}, Scores()),
    "cap": (("blocks", "splash"), 200, 200, 4, {"causal": True}, Scores(soft_cap=0.7)),
    "relative": (("blocks",), 300, 300, 4, {"causal": True, "table": True}, Scores(scale=1.0)),
    "relative, both sides": (("blocks",), 300, 300, 4, {"table": True}, Scores(scale=1.0)),
}
FAST = {"packed", "window", "relative"}


def segments(length, rng):
    """Two packed rows: three texts and padding; one text and padding."""
    ends = sorted(rng.choice(np.arange(1, length), 3, replace=False))
    first = np.repeat([1, 2, 3, 0], np.diff([0, *ends, length]))
    return np.stack([first, np.arange(length) < length - 20]).astype(np.int32)


def arrays(length, keys, groups, options, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((2, HEADS, length, WIDTH))
    k, v = (rng.standard_normal((2, groups, keys, WIDTH)) for _ in range(2))
    query = segments(length, rng)
    key = query if length == keys else segments(keys, rng)
    table = rng.standard_normal((BUCKETS, HEADS)) if "table" in options else None
    return q, k, v, query, key, table


def visibility_of(query, key, table, options):
    flags = {name: value for name, value in options.items() if name != "table"}
    return Visibility(jnp.asarray(query), jnp.asarray(key), table_KH=table, **flags)


def explicit(q, k, v, query, key, table, options, scores):
    """Softmax in float64, a query at a time, over the keys that it sees."""
    out = np.zeros((2, q.shape[2], HEADS, WIDTH))
    for b, h, t in np.ndindex(2, HEADS, q.shape[2]):
        seen = query[b, t] == key[b]
        distance = np.arange(len(seen)) - t
        if options.get("causal"):
            seen &= distance <= 0
        if window := options.get("window"):
            seen &= distance > -window
        if not seen.any():
            continue
        g = h * k.shape[1] // HEADS
        values = k[b, g, seen] @ q[b, h, t] * (scores.scale or WIDTH**-0.5)
        if scores.soft_cap:
            values = scores.soft_cap * np.tanh(values / scores.soft_cap)
        if table is not None:
            values += table[[bucket(int(d), not options.get("causal")) for d in distance[seen]], h]
        weights = np.exp(values - values.max())
        out[b, t, h] = weights @ v[b, g, seen] / weights.sum()
    return out.reshape(2, q.shape[2], -1)


def bucket(distance, two_sided):
    """The bucket of T5: half of a side holds one distance each, the others grow by the logarithm up to 128."""
    side = 16 if two_sided else 32
    size, exact = abs(distance) if two_sided else max(0, -distance), side // 2
    large = exact + int(np.log(max(size, 1) / exact) / np.log(128 / exact) * (side - exact) + 1e-9)
    return (size if size < exact else min(large, side - 1)) + (side if two_sided and distance > 0 else 0)


@contextlib.contextmanager
def strictness_of(function):
    """The code of JAX's kernels promotes ranks and dtypes; ours does not."""
    if function in (plain, attend_in_blocks):
        yield
    else:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield


def call(function, q, k, v, query, key, table, options, scores):
    q, k, v, table = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (q, k, v, table))
    with strictness_of(function):
        return function(q, k, v, visibility_of(query, key, table, options), scores)


def plain(q, k, v, visibility, scores):
    return attend(q, k, v, visibility.bias(), scores)


each_case = pytest.mark.parametrize(
    "name, kernel",
    [
        pytest.param(name, kernel, marks=() if name in FAST else pytest.mark.extended)
        for name, (kernels, *_) in CASES.items()
        for kernel in kernels
    ],
)


@each_case
def test_values_equal_an_explicit_softmax(name, kernel):
    _, length, keys, groups, options, scores = CASES[name]
    q, k, v, query, key, table = arrays(length, keys, groups, options)
    want = explicit(q, k, v, query, key, table, options, scores)
    got = call(INTERPRETED[kernel], q, k, v, query, key, table, options, scores)
    real = query > 0
    np.testing.assert_allclose(np.asarray(got)[real], want[real], atol=2e-5)


@each_case
def test_gradients_equal_those_of_plain_attention(name, kernel):
    """Of a weighted sum over real tokens, to queries, keys, values and relative biases."""
    _, length, keys, groups, options, scores = CASES[name]
    q, k, v, query, key, table = arrays(length, keys, groups, options)
    weights = np.random.default_rng(1).standard_normal((2, length, HEADS * WIDTH)) * (query > 0)[..., None]

    def gradients(function):
        def total(inputs):
            q, k, v, table = inputs
            out = call(function, q, k, v, query, key, table, options, scores)
            return (out * jnp.asarray(weights, jnp.float32)).sum()

        inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (q, k, v, table))
        with strictness_of(function):
            return jax.grad(total)(inputs)

    chex.assert_trees_all_close(gradients(INTERPRETED[kernel]), gradients(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [0, 100])
def test_layers_of_a_scan_choose_the_window_by_a_traced_flag(window):
    q, k, v, query, _, _ = arrays(300, 300, 4, {})
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    for attention in ("plain", "flash"):
        attends = attention_of(attention, Visibility(query, query, True), Scores(), same_tokens=True, window=window)
        static = [attends(q, k, v, local) for local in (False, True)]
        traced = jax.jit(lambda q, k, v, local, f=attends: f(q, k, v, local))
        for local in (False, True):
            np.testing.assert_allclose(traced(q, k, v, local), static[local], atol=1e-6)
        assert bool(window) != np.array_equal(*static)


def step_memory(attention, length):
    """Bytes of temporary memory of a compiled gradient of attention over one row."""
    shapes = [jax.ShapeDtypeStruct((1, 2, length, 16), jnp.float32)] * 3
    segment = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def total(q, k, v, segment_BT):
        visibility = Visibility(segment_BT, segment_BT, causal=True)
        return attention_of(attention, visibility, Scores(), same_tokens=True)(q, k, v, False).sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*shapes, segment).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_linearly_with_the_length():
    sizes = [step_memory("flash", length) for length in (1024, 2048, 4096, 8192)]
    for shorter, longer in zip(sizes, sizes[1:], strict=False):
        assert longer < 2.3 * shorter
    assert step_memory("plain", 2048) > 3 * step_memory("plain", 1024)  # so the test can fail
    assert step_memory("plain", 2048) > 4 * sizes[1]


@pytest.mark.parametrize("platform, kernel, calls", [("tpu", "splash", 2), ("cuda", "triton", 3)])
def test_kernels_lower_forward_and_backward_without_their_device(platform, kernel, calls):
    """The backward pass of splash is one fused kernel; that of triton is one for a sum beside one for the gradients."""
    q = jax.ShapeDtypeStruct((2, 4, 1024, 64), jnp.bfloat16)
    segment = jax.ShapeDtypeStruct((2, 1024), jnp.int32)

    def total(q, k, v, segment_BT):
        return KERNELS[kernel](q, k, v, Visibility(segment_BT, segment_BT, causal=True)).astype(jnp.float32).sum()

    target = {"tpu": "tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}[platform]
    with tracing_for(platform), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        checks = [export.DisabledSafetyCheck.custom_call(target)]
        program = export.export(gradient, platforms=[platform], disabled_checks=checks)(q, q, q, segment)
    text = program.mlir_module()
    assert text.count(f"@{target}(") == calls
    assert "1024x1024" not in text  # no scores outside the kernels


@pytest.mark.parametrize(
    "arguments, options, kernel",
    [
        (("auto", (256, 256)), {"platform": "cpu"}, "plain"),
        (("auto", (1023, 1023)), {"platform": "cpu"}, "plain"),
        (("auto", (1024, 1024)), {"platform": "cpu"}, "blocks"),
        (("flash", (64, 64)), {"platform": "cpu"}, "plain"),  # one block
        (("flash", (64, 64)), {"platform": "tpu"}, "splash"),
        (("auto", (512, 512)), {"platform": "tpu", "window": 8, "scores": Scores(soft_cap=50.0)}, "splash"),
        (("auto", (512, 512)), {"platform": "tpu", "relative": True}, "blocks"),
        (("auto", (512, 512)), {"platform": "gpu"}, "triton"),
        (("auto", (512, 512)), {"platform": "gpu", "compute": "float32"}, "blocks"),
        (("auto", (512, 512)), {"platform": "gpu", "window": 8}, "blocks"),
        (("auto", (512, 512)), {"platform": "gpu", "scores": Scores(soft_cap=50.0)}, "blocks"),
        (("auto", (512, 512)), {"platform": "gpu", "same_tokens": False}, "blocks"),
        (("plain", (8192, 8192)), {"platform": "gpu"}, "plain"),
        (("flash", (8192, 8192)), {"platform": "any"}, "blocks"),
    ],
)
def test_choice_of_the_kernel(arguments, options, kernel):
    assert choose(*arguments, **({"same_tokens": True} | options)) == kernel


def test_the_platform_is_that_of_the_devices_unless_another_is_named():
    assert target_platform() == "cpu"
    with lowering_for("tpu"):
        assert target_platform() == "tpu"
        assert choose("flash", (1024, 1024), same_tokens=True) == "splash"
    assert target_platform() == "cpu"


@pytest.mark.parametrize("shape", [Mesh(2, 2, 2), pytest.param(Mesh(2, 4, 1), marks=pytest.mark.extended)])
def test_a_kernel_under_a_mesh_equals_one_device(shape):
    """Rows over data and fsdp, heads over tensor; the kernel sees the parts of its device."""
    q, k, v, query, _, _ = arrays(256, 256, 2, {})
    batch = [np.concatenate([x, x[::-1]] * (shape.data * shape.fsdp // 4 or 1)) for x in (q, k, v, query)]
    batch = (*(x.astype(np.float32) for x in batch[:3]), batch[3])
    devices = MeshDevices(shape)

    def function(_, batch):
        q, k, v, query_BT = batch
        return attend_splash(q, k, v, Visibility(query_BT, query_BT, causal=True), interpret=True)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        want = jax.jit(function)(0.0, batch)
        got = devices.compile(function)(devices.replicate(np.float32(0)), devices.shard(batch))
    np.testing.assert_allclose(got, want, atol=1e-6)
