"""One device and eight: what goes to the devices comes back, and both give the same numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.runtime.backends import check, make_devices

BACKENDS = [("jit", 1), ("pmap", 8)]
PARAMS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(7)}
BATCH = {"x": np.linspace(-1, 1, 32, dtype=np.float32).reshape(16, 2), "index": np.arange(16, dtype=np.int32)}
each_backend = pytest.mark.parametrize("backend, count", BACKENDS)


@each_backend
def test_first_of_what_was_put_is_what_it_was(backend, count):
    devices = make_devices(backend)
    assert devices.count == count
    first = devices.unreplicate(devices.replicate(PARAMS))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(first))
    chex.assert_trees_all_equal(jax.device_get(first), PARAMS)


@each_backend
def test_gather_is_the_inverse_of_cut(backend, count):
    devices = make_devices(backend)
    cut = devices.shard(BATCH)
    held = [shard.data.size for shard in cut["x"].addressable_shards]
    assert held == [BATCH["x"].size // count] * count
    gathered = devices.to_host(cut)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(gathered))
    chex.assert_trees_all_equal(gathered, BATCH)


@each_backend
def test_compile_keeps_rows_in_order_and_apart(backend, count):
    devices = make_devices(backend)
    function = devices.compile(lambda params, batch: {"y": batch["x"] @ params["w"], "index": batch["index"]})
    got = devices.to_host(function(devices.replicate(PARAMS), devices.shard(BATCH)))
    np.testing.assert_allclose(got["y"], BATCH["x"] @ PARAMS["w"], rtol=1e-6)
    np.testing.assert_array_equal(got["index"], BATCH["index"])


def summed(params, batch, *, all_sum):
    """(changed parameters, a sum over all rows): what a training step gives."""
    gradient = all_sum(batch["x"].T @ jnp.tanh(batch["x"] @ params["w"]))
    count = all_sum(jnp.int32(batch["index"].shape[0]))
    return {"w": params["w"] - 0.1 * gradient, "step": params["step"] + 1}, count


@each_backend
@pytest.mark.parametrize("donate", [False, True])
def test_compile_sums_adds_over_all_rows(backend, count, donate):
    devices = make_devices(backend)
    put = devices.replicate(PARAMS)
    got, rows = devices.unreplicate(devices.compile_sums(summed, donate=donate)(put, devices.shard(BATCH)))
    x, w = (each.astype(np.float64) for each in (BATCH["x"], PARAMS["w"]))
    np.testing.assert_allclose(got["w"], w - 0.1 * x.T @ np.tanh(x @ w), rtol=1e-5)
    assert int(got["step"]) == 8 and int(rows) == 16
    assert put["w"].is_deleted() == donate


@each_backend
def test_what_all_sum_has_added_is_the_same_on_every_device(backend, count):
    devices = make_devices(backend)
    _, rows = devices.compile_sums(summed)(devices.replicate(PARAMS), devices.shard(BATCH))
    assert [int(np.ravel(shard.data)[0]) for shard in rows.addressable_shards] == [16] * count


@each_backend
def test_first_moves_nothing_between_host_and_device(backend, count):
    devices = make_devices(backend)
    put = devices.replicate(PARAMS)
    with jax.transfer_guard("disallow"):
        devices.unreplicate(put)


def test_auto_takes_all_devices():
    assert make_devices().count == jax.local_device_count() == 8


@pytest.mark.parametrize("refuse", [check, make_devices])
def test_an_unknown_backend_is_refused(refuse):
    with pytest.raises(KdError, match="backend: 'gpu'; wanted one of auto, jit, pmap, mesh"):
        refuse("gpu")
