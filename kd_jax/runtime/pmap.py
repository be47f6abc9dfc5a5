"""All devices of this process, data-parallel: each holds the parameters and a shard of the batch.

JAX implements `pmap` with `jit` and `shard_map`. Arrays have a leading axis of devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kd_jax.runtime.devices import Compiled, Tree

AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class PmapDevices:
    """The first `count` devices of this process (a `Devices`)."""

    count: int

    share = (0, 1)

    @property
    def local(self) -> int:
        """Devices of this host that work on its share of a batch."""
        return self.count

    def replicate(self, tree: Tree, axes: Tree = "") -> Tree:
        """Copy arrays to every device."""
        del axes  # every device holds whole arrays
        return self._stack(jax.tree.map(lambda x: jnp.broadcast_to(x[None], (self.count, *jnp.shape(x))), tree))

    def shard(self, batch: Tree) -> Tree:
        """Split a batch's rows over the devices."""
        return self._stack(jax.tree.map(lambda x: x.reshape(self.count, -1, *x.shape[1:]), batch))

    def to_host(self, tree: Tree) -> Tree:
        """Return a batch's rows as numpy arrays."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(tree))

    def unreplicate(self, tree: Tree) -> Tree:
        """Return the first device's arrays."""
        return jax.tree.map(lambda x: x.addressable_shards[0].data.reshape(x.shape[1:]), tree)

    def compile(self, function: Callable[[Tree, Tree], Tree]) -> Compiled:
        """Compile a function for every device's rows."""
        return jax.pmap(function, axis_name=AXIS, devices=self._devices)

    def compile_sums(self, function: Callable[..., Tree], donate: bool = False) -> Compiled:
        """Compile a function whose `all_sum` adds over the devices."""
        step = functools.partial(function, all_sum=functools.partial(jax.lax.psum, axis_name=AXIS))
        return jax.pmap(step, axis_name=AXIS, devices=self._devices, donate_argnums=(0,) if donate else ())

    @property
    def _devices(self) -> list[Any]:
        return jax.local_devices()[: self.count]

    def _stack(self, tree: Tree) -> Tree:
        """Move arrays [devices, ...] to the devices, one row each."""
        mesh = jax.make_mesh((self.count,), (AXIS,), (AxisType.Auto,), devices=self._devices)
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))
