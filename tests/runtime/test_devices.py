"""One device and eight: arrays move to the devices and back, and both give the same results."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.runtime.backends import make_devices

BACKENDS = [("jit", 1), ("pmap", 8)]
PARAMS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(7)}
BATCH = {"x": np.linspace(-1, 1, 32, dtype=np.float32).reshape(16, 2), "index": np.arange(16, dtype=np.int32)}
each_backend = pytest.mark.parametrize("backend, count", BACKENDS)


@each_backend
def test_unreplicate_inverts_replicate(backend, count):
    devices = make_devices(backend)
    assert devices.count == count
    single = devices.unreplicate(devices.replicate(PARAMS))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(single))
    chex.assert_trees_all_equal(jax.device_get(single), PARAMS)


@each_backend
def test_to_host_inverts_shard(backend, count):
    devices = make_devices(backend)
    sharded = devices.shard(BATCH)
    sizes = [shard.data.size for shard in sharded["x"].addressable_shards]
    assert sizes == [BATCH["x"].size // count] * count
    arrays = devices.to_host(sharded)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(arrays))
    chex.assert_trees_all_equal(arrays, BATCH)


@each_backend
def test_compile_keeps_the_order_of_rows(backend, count):
    devices = make_devices(backend)
    function = devices.compile(lambda params, batch: {"y": batch["x"] @ params["w"], "index": batch["index"]})
    result = devices.to_host(function(devices.replicate(PARAMS), devices.shard(BATCH)))
    np.testing.assert_allclose(result["y"], BATCH["x"] @ PARAMS["w"], rtol=1e-6)
    np.testing.assert_array_equal(result["index"], BATCH["index"])


def summed(params, batch, *, all_sum):
    """Return (new parameters, a sum over all rows), as a training step does."""
    gradient = all_sum(batch["x"].T @ jnp.tanh(batch["x"] @ params["w"]))
    count = all_sum(jnp.int32(batch["index"].shape[0]))
    return {"w": params["w"] - 0.1 * gradient, "step": params["step"] + 1}, count


@each_backend
@pytest.mark.parametrize("donate", [False, True])
def test_compile_sums_adds_over_all_rows(backend, count, donate):
    devices = make_devices(backend)
    params = devices.replicate(PARAMS)
    new, rows = devices.unreplicate(devices.compile_sums(summed, donate=donate)(params, devices.shard(BATCH)))
    x, w = (each.astype(np.float64) for each in (BATCH["x"], PARAMS["w"]))
    np.testing.assert_allclose(new["w"], w - 0.1 * x.T @ np.tanh(x @ w), rtol=1e-5)
    assert int(new["step"]) == 8 and int(rows) == 16
    assert params["w"].is_deleted() == donate


@each_backend
def test_all_sum_is_the_same_on_every_device(backend, count):
    devices = make_devices(backend)
    _, rows = devices.compile_sums(summed)(devices.replicate(PARAMS), devices.shard(BATCH))
    assert [int(np.ravel(shard.data)[0]) for shard in rows.addressable_shards] == [16] * count


@each_backend
def test_unreplicate_transfers_nothing_to_the_host(backend, count):
    devices = make_devices(backend)
    params = devices.replicate(PARAMS)
    with jax.transfer_guard("disallow"):
        devices.unreplicate(params)
