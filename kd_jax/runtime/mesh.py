"""A mesh of devices: jit, with shardings from the names of axes; the compiler adds the communication.

A batch's rows are sharded over "data" and "fsdp", parameters over "fsdp" and "tensor" by the names of their axes. The
mesh changes the communication of a program and not its results.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kd_jax.config import check_count
from kd_jax.errors import KdError
from kd_jax.runtime.devices import ROWS, Compiled, Tree

# A parameter's axis -> the mesh axis that shards it; other axes are not sharded. qkv, kv and a gated inner are several
# matrices side by side, and when they are split apart their parts lie on different devices. Those activations are
# exchanged once forward and once backward (at data = fsdp = tensor = 2, in a gated decoder with grouped keys, 7
# all-to-alls and 5 permutations of a device's rows a layer beside 4 all-reduces). To split the matrices first would
# move parameters instead: less in training once a device has more tokens than channels, more at every decoded token.
RULES = {
    "model": "fsdp",
    "q": "tensor",
    "kv": "tensor",
    "qkv": "tensor",
    "inner": "tensor",
    "neuron": "tensor",
    "token": "tensor",
}
MIN_FSDP_AXES = 2  # of a layer's parameter that is sharded over "fsdp": a vector is not worth gathering


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The number of shards of batches and parameters; the product is the number of devices.

    Attributes:
      data: shards of a batch, each beside a copy of the parameters; 0 for all remaining devices.
      fsdp: shards of a batch and of every matrix, which is gathered where it is used (arXiv 2004.13336, 1910.02054).
      tensor: shards of heads, neurons and vocabulary (arXiv 1909.08053).

    Examples:
      >>> Mesh(fsdp=2).over(8)
      Mesh(data=4, fsdp=2, tensor=1)
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def over(self, count: int) -> "Mesh":
        """Return the mesh over `count` devices, with data = 0 filled in."""
        for field, least in (("data", 0), ("fsdp", 1), ("tensor", 1)):
            check_count(f"mesh.{field}", getattr(self, field), least, remedy=f"Set --mesh.{field}.")
        rest = self.fsdp * self.tensor
        data = self.data or max(1, count // rest)
        if data * rest != count:
            raise KdError(
                f"mesh: expected data x fsdp x tensor = {count} devices, got {data} x {self.fsdp} x {self.tensor} = "
                f"{data * rest}. Set --mesh.fsdp and --mesh.tensor to divisors of {count}."
            )
        return dataclasses.replace(self, data=data)


DATA_PARALLEL = Mesh()


def partition(names: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[str | None, ...]:
    """Return the mesh axis (or None) of each axis of an array, up to the last sharded one.

    An axis that does not divide evenly is not sharded; nor is an array with names "".

    Examples:
      >>> partition("token model", (48, 16), {"fsdp": 4, "tensor": 2})
      ('tensor', 'fsdp')
      >>> partition("token model", (19, 16), {"fsdp": 4, "tensor": 2})
      (None, 'fsdp')
      >>> partition("neuron model", (32, 15), {"fsdp": 4, "tensor": 2})
      ('tensor',)
      >>> partition("model", (16,), {"fsdp": 4, "tensor": 2})
      ()
      >>> partition("layer model inner", (3, 16, 32), {"fsdp": 4, "tensor": 2})
      (None, 'fsdp', 'tensor')
    """
    axis_names = names.split()
    is_vector = len(axis_names) - ("layer" in axis_names) < MIN_FSDP_AXES

    def mesh_axis(name: str, size: int) -> str | None:
        axis = RULES.get(name)
        if axis is None or sizes[axis] == 1 or size % sizes[axis] or (axis == "fsdp" and is_vector):
            return None
        return axis

    axes = [mesh_axis(name, size) for name, size in zip(axis_names, shape, strict=True)] if names else []
    while axes and axes[-1] is None:  # as JAX writes it: its caches take one layout written in two ways for two
        axes.pop()
    return tuple(axes)


def gather_params(params: Tree, axes: Callable[[Tree], Tree]) -> Tree:
    """Gather parameters over "fsdp" for a network's use; their gradients are sharded again.

    Without this the compiler shards the hidden states as the parameters are, and sums logits over devices. Without a
    mesh the parameters are returned as they are.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if sizes.get("fsdp", 1) == 1:
        return params
    gathered_sizes = {**sizes, "fsdp": 1}

    def gather(names: str, x: jax.Array) -> jax.Array:
        sharded, gathered = (PartitionSpec(*partition(names, x.shape, each)) for each in (sizes, gathered_sizes))
        return _gather(sharded, gathered, x)

    return jax.tree.map(gather, axes(params), params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(sharded: PartitionSpec, gathered: PartitionSpec, x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, gathered)


def _gather_forward(sharded: PartitionSpec, gathered: PartitionSpec, x: jax.Array) -> tuple[jax.Array, None]:
    return _gather(sharded, gathered, x), None


def _gather_backward(sharded: PartitionSpec, gathered: PartitionSpec, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # Summed first: sharded at once, an embedding's gradient would send the rows of all devices around.
    whole = jax.lax.with_sharding_constraint(gradient, gathered)
    return (jax.lax.with_sharding_constraint(whole, sharded),)


_gather.defvjp(_gather_forward, _gather_backward)


@dataclasses.dataclass(frozen=True)
class MeshDevices:
    """All devices in a mesh (a `Devices`).

    Attributes:
      shape: sizes of the mesh, without a 0.
      own: whether the mesh has this host's devices alone, rather than those of all hosts.
    """

    shape: Mesh
    own: bool = False

    @property
    def count(self) -> int:
        """Shards of a batch."""
        return self.shape.data * self.shape.fsdp

    @property
    def devices(self) -> int:
        """Number of devices of all processes."""
        return self.count * self.shape.tensor

    @property
    def local(self) -> int:
        """Devices of this host that work on its share of a batch."""
        return self.devices // self.share[1]

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh in JAX's terms."""
        sizes = dataclasses.asdict(self.shape)
        devices = (jax.local_devices() if self.own else jax.devices())[: math.prod(sizes.values())]
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)

    @property
    def share(self) -> tuple[int, int]:
        """This host's share of a batch's rows, (index, count)."""
        return self._share

    @functools.cached_property
    def _share(self) -> tuple[int, int]:
        indices = self._sharding(ROWS).addressable_devices_indices_map((self.count,)).values()
        starts = {index[0].start or 0 for index in indices if index}
        return min(starts) // len(starts), self.count // len(starts)

    def replicate(self, tree: Tree, axes: Tree = "") -> Tree:
        """Copy arrays to all devices, or shard them by the names of their axes."""

        def place(names: str, part: Tree) -> Tree:
            return jax.tree.map(lambda x: _place(x, self._param_sharding(names, x.shape)), part)

        return jax.tree.map(place, axes, tree)

    def shard(self, batch: Tree) -> Tree:
        """Shard a batch's rows over "data" and "fsdp"."""
        rows = self._sharding(ROWS)
        if self.share == (0, 1):
            return jax.device_put(batch, rows)
        return jax.tree.map(functools.partial(_shard_share, rows, self.share), batch)

    def to_host(self, tree: Tree) -> Tree:
        """Return sharded arrays as numpy arrays, on a mesh of one host."""
        return jax.device_get(tree)

    def unreplicate(self, tree: Tree) -> Tree:
        """Return the arrays as they are: a mesh stacks nothing."""
        return tree

    def replicate_shapes(self, tree: Tree, axes: Tree = "") -> Tree:
        """Return shapes and shardings as `replicate` would make; they take no memory."""

        def struct(names: str, x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._param_sharding(names, x.shape))

        return jax.tree.map(lambda names, part: jax.tree.map(functools.partial(struct, names), part), axes, tree)

    def shard_shapes(self, batch: Tree) -> Tree:
        """Return shapes and shardings as `shard` would make; they take no memory."""
        rows = self._sharding(ROWS)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), batch)

    def compile(self, function: Callable[[Tree, Tree], Tree]) -> Compiled:
        """Compile a function whose results are sharded as the batch is."""
        return jax.jit(self._in_mesh(function), out_shardings=self._sharding(ROWS))

    def compile_sums(self, function: Callable[..., Tree], donate: bool = False) -> Compiled:
        """Compile a function whose results are the same on every device; the compiler sums by itself."""
        step = self._in_mesh(functools.partial(function, all_sum=lambda tree: tree))
        if not donate:
            return jax.jit(step, out_shardings=self._sharding())
        return _DonatingStep(step, self._sharding())

    def _sharding(self, *axes: Any) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _param_sharding(self, names: str, shape: tuple[int, ...]) -> NamedSharding:
        return self._sharding(*partition(names, shape, dataclasses.asdict(self.shape)))

    def _in_mesh(self, function: Callable[..., Tree]) -> Callable[..., Tree]:
        """Return the function traced under this mesh, where `row_shards` reads its sizes."""

        def traced(*args: Tree) -> Tree:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*args)

        return traced


class _DonatingStep:
    """A compiled step whose result is (the first argument's next value, sums).

    The next value has the shardings of the first argument. So the next call meets the same layout, and nothing is
    compiled twice.
    """

    def __init__(self, step: Callable[..., tuple[Tree, Tree]], replicated: NamedSharding):
        def step_in_layout(shardings: tuple[Any, ...], *args: Tree) -> tuple[Tree, Tree]:
            state, sums = step(*args)
            leaves, tree = jax.tree.flatten(state)
            leaves = map(jax.lax.with_sharding_constraint, leaves, shardings)
            return jax.tree.unflatten(tree, leaves), jax.lax.with_sharding_constraint(sums, replicated)

        self._jitted = jax.jit(step_in_layout, static_argnums=0, donate_argnums=1)

    def __call__(self, *args: Tree) -> tuple[Tree, Tree]:
        return self._jitted(_shardings(args[0]), *args)

    def lower(self, *args: Tree) -> jax.stages.Lowered:
        return self._jitted.lower(_shardings(args[0]), *args)


def _shard_share(rows: NamedSharding, share: tuple[int, int], x: Any) -> jax.Array:
    """Make a batch's array [B, ...] of which each host has the rows of its share."""
    shape, start_row = (len(x) * share[1], *x.shape[1:]), share[0] * len(x)
    slices, count = rows.addressable_devices_indices_map(shape), rows.shard_shape(shape)[0]
    starts = {device: (index[0].start or 0) - start_row for device, index in slices.items() if index}
    shards = [jax.device_put(x[start : start + count], device) for device, start in starts.items()]
    return jax.make_array_from_single_device_arrays(shape, rows, shards)


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
    """Place an array in a mesh; each host supplies the parts of its own devices."""
    is_global = isinstance(x, jax.Array) and not x.is_fully_addressable
    if is_global or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def to_own_host(tree: Tree) -> Tree:
    """Return arrays that several hosts share as numpy arrays on each host; arrays of one host as they are.

    All hosts call it together.
    """

    def gather(x: jax.Array) -> jax.Array | np.ndarray:
        return x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)

    with jax.transfer_guard("allow"):
        return jax.tree.map(gather, tree)


def _shardings(tree: Tree) -> tuple[Any, ...]:
    return tuple(x.sharding for x in jax.tree.leaves(tree))
