"""What a way of spreading work over devices must offer; only this folder knows devices and hosts.

One step function serves every backend: it names no axis, and where it adds over devices it is handed
`all_sum`. All the stacking that a backend wants stays behind this protocol, so checkpoints and phases
never see it.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.sharding import PartitionSpec

Tree = Any
Compiled = Callable[..., Tree]
ROWS = ("data", "fsdp")  # axes of a mesh that a batch's rows are cut over


class Devices(Protocol):
    """Devices that work on one batch together.

    Attributes:
      count: portions that a batch is cut into; its rows are a multiple of it.
      local: devices that work on one host's share of a batch.
      share: (number, of how many) of the shares that a batch's rows are cut into for its hosts: which is this host's.
        Hosts that hold the same rows have the same number.
    """

    count: int
    local: int

    @property
    def share(self) -> tuple[int, int]: ...

    def replicate(self, tree: Tree, axes: Tree = "") -> Tree:
        """Every array on all devices: a copy on each, or, over a mesh, cut by the names of its axes.

        `axes` is a prefix of the tree; its leaves are names such as "model inner" (see `Model.axes`), "" for copies.
        """
        ...

    def shard(self, batch: Tree) -> Tree:
        """Host arrays [B, ...] of this host's share of the rows to its devices, B cut evenly over them."""
        ...

    def to_host(self, tree: Tree) -> Tree:
        """The inverse of `cut`: numpy arrays [B, ...]."""
        ...

    def unreplicate(self, tree: Tree) -> Tree:
        """What `put` was given, or sums that all devices share, as single arrays; no host transfer."""
        ...

    def compile(self, function: Callable[[Tree, Tree], Tree]) -> Compiled:
        """function(copied, cut) -> arrays [B, ...], cut as the batch is."""
        ...

    def compile_sums(self, function: Callable[..., Tree], donate: bool = False) -> Compiled:
        """function(copied, cut, ..., all_sum=) -> what `all_sum` has added up, the same on every device.

        `donate` gives the first argument's memory to the result, which is then (what it becomes, the sums).
        """
        ...


def row_shards() -> int:
    """Into how many portions a mesh cuts the rows of the program that is being traced; 1 where no mesh does.

    It is static. Who takes rows in turn, such as the chunks of a head, takes some of every portion, or the rows of
    one device would have to be sent to all the others.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in ROWS if axis in sizes)


def shard_map_rows(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """The function of arrays [N, ...], of which each device of a mesh computes its own rows.

    For what the compiler does not cut by itself, such as top_k. A row's result depends on that row alone. Where no mesh
    is, it is the function itself.
    """
    if row_shards() == 1:
        return function
    own = PartitionSpec(ROWS)
    return jax.shard_map(function, in_specs=own, out_specs=own, axis_names=set(ROWS))


def disallow_transfers():
    """Within it, an implicit transfer between host and device is an error."""
    return jax.transfer_guard("disallow")
