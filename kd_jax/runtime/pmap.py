"""All of this process's devices, data-parallel: every device holds the parameters and a part of the batch.

In today's JAX `pmap` is a wrapper around `jit(shard_map)`; arrays carry a leading axis of devices.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kd_jax.runtime.devices import Compiled, Tree

AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class PmapDevices:
    """This process's devices (a `Devices`).

    Attributes:
      count: devices that take part, the first of this process.
    """

    count: int

    share = (0, 1)

    @property
    def local(self) -> int:
        return self.count

    def replicate(self, tree: Tree, axes: Tree = "") -> Tree:
        del axes  # every device holds all of it
        return self._stacked(jax.tree.map(lambda x: jnp.broadcast_to(x[None], (self.count, *jnp.shape(x))), tree))

    def shard(self, batch: Tree) -> Tree:
        return self._stacked(jax.tree.map(lambda x: x.reshape(self.count, -1, *x.shape[1:]), batch))

    def to_host(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(tree))

    def unreplicate(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda x: x.addressable_shards[0].data.reshape(x.shape[1:]), tree)

    def compile(self, function: Callable[[Tree, Tree], Tree]) -> Compiled:
        return jax.pmap(function, axis_name=AXIS, devices=self._devices)

    def compile_sums(self, function: Callable[..., Tree], donate: bool = False) -> Compiled:
        step = functools.partial(function, all_sum=functools.partial(jax.lax.psum, axis_name=AXIS))
        return jax.pmap(step, axis_name=AXIS, devices=self._devices, donate_argnums=(0,) if donate else ())

    @property
    def _devices(self) -> list[jax.Device]:
        return jax.local_devices()[: self.count]

    def _stacked(self, tree: Tree) -> Tree:
        """[devices, ...] arrays, one row to a device."""
        mesh = jax.make_mesh((self.count,), (AXIS,), (AxisType.Auto,), devices=self._devices)
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))
