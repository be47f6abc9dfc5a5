"""One device: jit, without stacking or sharding."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from kd_jax.runtime.devices import Compiled, Tree


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """This process's first device (a `Devices`)."""

    count = 1
    local = 1
    share = (0, 1)

    def replicate(self, tree: Tree, axes: Tree = "") -> Tree:
        """Copy arrays to the device."""
        del axes  # the device holds whole arrays
        return jax.device_put(tree, jax.local_devices()[0])

    def shard(self, batch: Tree) -> Tree:
        """Copy a batch to the device."""
        return jax.device_put(batch, jax.local_devices()[0])

    def to_host(self, tree: Tree) -> Tree:
        """Return numpy arrays."""
        return jax.device_get(tree)

    def unreplicate(self, tree: Tree) -> Tree:
        """Return the arrays as they are."""
        return tree

    def compile(self, function: Callable[[Tree, Tree], Tree]) -> Compiled:
        """Compile a function."""
        return jax.jit(function)

    def compile_sums(self, function: Callable[..., Tree], donate: bool = False) -> Compiled:
        """Compile a function of sums over all rows."""
        return jax.jit(functools.partial(function, all_sum=lambda tree: tree), donate_argnums=(0,) if donate else ())
