"""The only place that knows devices and hosts.

One step function serves every backend: it is handed `all_sum` and names no axis. Under pmap the batch
is cut over the devices and `all_sum` is a psum; under jit one program holds the whole batch. All the
stacking that pmap wants stands here, so checkpoints and phases never see it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kd_jax.errors import KdError

Tree = Any
AXIS = "devices"
BACKENDS = ("auto", "jit", "pmap")


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How steps are spread over this process's devices.

    Attributes:
      backend: "jit" (one device) or "pmap" (all devices).
      devices: local devices that take part.
    """

    backend: Literal["jit", "pmap"]
    devices: int

    def replicate(self, tree: Tree) -> Tree:
        """A copy of every array on each device."""
        if self.backend == "jit":
            return jax.device_put(tree, jax.local_devices()[0])
        return self._put(jax.tree.map(lambda x: jnp.broadcast_to(x[None], (self.devices, *jnp.shape(x))), tree))

    def first(self, tree: Tree) -> Tree:
        """One device's copy of replicated arrays, or of sums that all devices share; no host transfer."""
        if self.backend == "jit":
            return tree
        return jax.tree.map(lambda x: x.addressable_shards[0].data.reshape(x.shape[1:]), tree)

    def shard(self, batch: Tree) -> Tree:
        """Host arrays [B, ...] to the devices, B cut evenly over them."""
        if self.backend == "jit":
            return jax.device_put(batch, jax.local_devices()[0])
        return self._put(jax.tree.map(lambda x: x.reshape(self.devices, -1, *x.shape[1:]), batch))

    def _put(self, stacked: Tree) -> Tree:
        """[devices, ...] arrays, one row to a device."""
        mesh = jax.make_mesh((self.devices,), (AXIS,), (AxisType.Auto,), devices=jax.local_devices())
        return jax.device_put(stacked, NamedSharding(mesh, PartitionSpec(AXIS)))

    def gather(self, tree: Tree) -> Tree:
        """The inverse of `shard`: numpy arrays [B, ...]."""
        host = jax.device_get(tree)
        if self.backend == "jit":
            return host
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), host)

    def spread(self, function: Callable, donate_state: bool = False) -> Callable:
        """function(state, batch, all_sum=...) -> compiled function of a replicated state and a sharded batch."""
        donate = (0,) if donate_state else ()
        if self.backend == "jit":
            return jax.jit(function, donate_argnums=donate)
        all_sum = functools.partial(jax.lax.psum, axis_name=AXIS)
        return jax.pmap(functools.partial(function, all_sum=all_sum), axis_name=AXIS, donate_argnums=donate)


def parallel(backend: str = "auto") -> Parallel:
    """The backend over all devices of this process.

    Raises:
      KdError: for an unknown backend.
    """
    if backend not in BACKENDS:
        raise KdError(f"backend: {backend!r}; wanted one of {', '.join(BACKENDS)}")
    devices = jax.local_device_count()
    if backend == "jit" or (backend == "auto" and jax.device_count() == 1):
        return Parallel("jit", 1)
    return Parallel("pmap", devices)


def host() -> tuple[int, int]:
    """(this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def disallow_transfers():
    """Within it, an implicit transfer between host and device is an error."""
    return jax.transfer_guard("disallow")
