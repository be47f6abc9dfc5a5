"""The interface of the device backends; only this folder distinguishes devices and hosts.

One step function serves every backend. It names no mesh axis; to sum over devices it calls its argument `all_sum`.
Stacking and sharding of arrays stay behind the interface, so checkpoints and phases never see them.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.sharding import PartitionSpec

Tree = Any  # a pytree of arrays
ROWS = ("data", "fsdp")  # axes of a mesh that shard a batch's rows


class Compiled(Protocol):
    """A jitted function (the part of `jax.stages.Wrapped` that kd_jax uses)."""

    def __call__(self, *args: Tree) -> Tree:
        """Run the function."""
        ...

    def lower(self, *args: Tree) -> jax.stages.Lowered:
        """Lower the function for arguments or their shapes."""
        ...


class Devices(Protocol):
    """Devices that work on one batch together.

    Attributes:
      count: shards of a batch; its number of rows is a multiple of it.
      local: devices of this host that work on its share of a batch.
      share: (index, count) of this host's share of a batch's rows. Hosts that hold the same rows have the same index.
    """

    @property
    def count(self) -> int:
        """Shards of a batch."""
        ...

    @property
    def local(self) -> int:
        """Devices of this host that work on its share of a batch."""
        ...

    @property
    def share(self) -> tuple[int, int]:
        """This host's share of a batch's rows."""
        ...

    def replicate(self, tree: Tree, axes: Tree = "") -> Tree:
        """Copy every array to all devices; over a mesh, shard arrays with named axes.

        Args:
          tree: arrays.
          axes: a prefix of the tree; its leaves name axes, for example "model inner" (see `Model.axes`), or are "" for
            copies.
        """
        ...

    def shard(self, batch: Tree) -> Tree:
        """Move host arrays [B, ...] of this host's share to its devices, B split evenly over them."""
        ...

    def to_host(self, tree: Tree) -> Tree:
        """Return sharded arrays as numpy arrays [B, ...]; the inverse of `shard`."""
        ...

    def unreplicate(self, tree: Tree) -> Tree:
        """Return the arrays that `replicate` took, or sums over all devices, without a host transfer."""
        ...

    def compile(self, function: Callable[[Tree, Tree], Tree]) -> Compiled:
        """Compile function(replicated, sharded) -> arrays [B, ...], sharded as the batch is."""
        ...

    def compile_sums(self, function: Callable[..., Tree], donate: bool = False) -> Compiled:
        """Compile function(replicated, sharded, ..., all_sum=) -> sums, the same on every device.

        Args:
          function: calls `all_sum` on each of its results.
          donate: reuse the first argument's memory; the result is then (the first argument's next value, sums).
        """
        ...


def row_shards() -> int:
    """Return the number of row shards in the program that is being traced; 1 without a mesh.

    The number is static. Code that takes rows in chunks must take some of every shard. Otherwise one device's rows are
    sent to all others.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in ROWS)


def shard_map_rows(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """Wrap a row-wise function in `jax.shard_map` over the mesh that is set, if there is one.

    All arguments and results have a leading axis N, a multiple of the mesh's row shards, and a row's result depends on
    that row alone. It serves functions that the compiler would run on all rows on every device, such as top_k.
    """
    if row_shards() == 1:
        return function
    rows = PartitionSpec(ROWS)
    return jax.shard_map(function, in_specs=rows, out_specs=rows, axis_names=set(ROWS))


def disallow_transfers() -> contextlib.AbstractContextManager[None]:
    """Return a context in which an implicit transfer between host and device is an error."""
    return jax.transfer_guard("disallow")
