"""One device: jit, and nothing is stacked."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from kd_jax.runtime.devices import Compiled, Tree


def _same(tree: Tree) -> Tree:
    return tree


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """This process's first device (a `Devices`)."""

    count = 1
    local = 1
    share = (0, 1)

    def replicate(self, tree: Tree, axes: Tree = "") -> Tree:
        del axes  # every device holds all of it
        return jax.device_put(tree, jax.local_devices()[0])

    def shard(self, batch: Tree) -> Tree:
        return jax.device_put(batch, jax.local_devices()[0])

    def to_host(self, tree: Tree) -> Tree:
        return jax.device_get(tree)

    def unreplicate(self, tree: Tree) -> Tree:
        return tree

    def compile(self, function: Callable[[Tree, Tree], Tree]) -> Compiled:
        return jax.jit(function)

    def compile_sums(self, function: Callable[..., Tree], donate: bool = False) -> Compiled:
        return jax.jit(functools.partial(function, all_sum=_same), donate_argnums=(0,) if donate else ())
