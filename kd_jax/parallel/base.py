"""What a way of spreading work over devices must offer; only this folder knows devices and hosts.

One step function serves every backend: it names no axis, and where it adds over devices it is handed
`all_sum`. All the stacking that a backend wants stays behind this protocol, so checkpoints and phases
never see it.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

Tree = Any
Compiled = Callable[..., Tree]


class Devices(Protocol):
    """Devices that work on one batch together.

    Attributes:
      count: how many; a batch's rows are a multiple of it.
    """

    count: int

    def put(self, tree: Tree) -> Tree:
        """A copy of every array on each device."""
        ...

    def cut(self, batch: Tree) -> Tree:
        """Host arrays [B, ...] to the devices, B cut evenly over them."""
        ...

    def gather(self, tree: Tree) -> Tree:
        """The inverse of `cut`: numpy arrays [B, ...]."""
        ...

    def first(self, tree: Tree) -> Tree:
        """One device's copy of what `put` copied, or of sums that all devices share; no host transfer."""
        ...

    def compile(self, function: Callable[[Tree, Tree], Tree]) -> Compiled:
        """function(copied, cut) -> arrays [B, ...], cut as the batch is."""
        ...

    def compile_sums(self, function: Callable[..., Tree], donate: bool = False) -> Compiled:
        """function(copied, cut, ..., all_sum=) -> what `all_sum` has added up, the same on every device.

        `donate` gives the first argument's memory to the result.
        """
        ...


def host() -> tuple[int, int]:
    """(this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def disallow_transfers():
    """Within it, an implicit transfer between host and device is an error."""
    return jax.transfer_guard("disallow")
