"""A mesh of devices: jit, and the compiler moves what each device lacks.

Rows of a batch are cut over "data" and "fsdp", parameters over "fsdp" and "tensor", by the names of their axes. What
a program means never depends on it; how much it moves does.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kd_jax.config import is_count
from kd_jax.errors import KdError
from kd_jax.runtime.devices import ROWS, Compiled, Tree

# A parameter's axis -> the mesh's axis that it is cut over. All others are whole on every device. qkv, kv and a gated
# inner are several matrices side by side, whose parts do not lie on the same devices when they are split apart: those
# activations are exchanged once forward and once backward (at data = fsdp = tensor = 2, of a gated decoder with grouped
# keys, 7 all-to-alls and 5 permutations of a device's rows a layer beside 4 all-reduces). To split the matrices first
# would move parameters instead: less in training once a device has more tokens than channels, more at every token that
# is decoded.
RULES = {
    "model": "fsdp",
    "q": "tensor",
    "kv": "tensor",
    "qkv": "tensor",
    "inner": "tensor",
    "neuron": "tensor",
    "token": "tensor",
}
LEAST_CUT = 2  # axes that a layer's parameter has, or it is whole over "fsdp": a vector is not worth gathering


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many ways batches and parameters are cut; the product is the number of devices.

    Attributes:
      data: portions of a batch, each beside a copy of the parameters; 0 for what is left.
      fsdp: portions of a batch and of every matrix, which is gathered where it is used (arXiv 2004.13336, 1910.02054).
      tensor: portions of heads, neurons and vocabulary (arXiv 1909.08053).

    Examples:
      >>> Mesh(fsdp=2).over(8)
      Mesh(data=4, fsdp=2, tensor=1)
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def over(self, count: int) -> "Mesh":
        """The mesh over `count` devices, with 0 filled in.

        Raises:
          KdError: if a number is out of its range, or the product is not `count`.
        """
        for field, least in {"data": 0, "fsdp": 1, "tensor": 1}.items():
            if not is_count(vars(self)[field], least):
                raise KdError(f"mesh.{field}: {vars(self)[field]!r}; wanted a whole number of at least {least}")
        rest = self.fsdp * self.tensor
        whole = dataclasses.replace(self, data=self.data or max(1, count // rest))
        if whole.data * rest != count:
            raise KdError(
                f"mesh: data {whole.data} x fsdp {self.fsdp} x tensor {self.tensor} = {whole.data * rest} devices; "
                f"there are {count}"
            )
        return whole


DATA_PARALLEL = Mesh()


def partition(names: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[str | None, ...]:
    """For each axis of an array, up to the last that is cut, the mesh's axis that it is cut over, or None.

    Args:
      names: of the array's axes, such as "model inner"; "" for an array without, which is whole.
      shape: of the array. An axis that cannot be cut evenly stays whole.
      sizes: of the mesh's axes.

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
    named = names.split()
    vector = len(named) - ("layer" in named) < LEAST_CUT

    def over(name: str, size: int) -> str | None:
        axis = RULES[name] if name in RULES else None
        if axis is None or sizes[axis] == 1 or size % sizes[axis] or (axis == "fsdp" and vector):
            return None
        return axis

    axes = [over(name, size) for name, size in zip(named, shape, strict=True)] if names else []
    while axes and axes[-1] is None:  # as JAX writes it: to its caches one layout written in two ways is two
        axes.pop()
    return tuple(axes)


def gather_params(params: Tree, axes: Callable[[Tree], Tree]) -> Tree:
    """Parameters as a network uses them: over "fsdp" whole again, and their gradients cut.

    Without it the compiler cuts the hidden states as the parameters are, and adds up logits over the devices. Where no
    mesh is, these are the parameters themselves.

    Args:
      params: a network's.
      axes: params -> names of the axes, as `Model.axes`.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if "fsdp" not in sizes or sizes["fsdp"] == 1:
        return params
    uncut = {**sizes, "fsdp": 1}

    def gather(names: str, x: jax.Array) -> jax.Array:
        cut, whole = (PartitionSpec(*partition(names, x.shape, each)) for each in (sizes, uncut))
        return _gather(cut, whole, x)

    return jax.tree.map(gather, axes(params), params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(cut: PartitionSpec, whole: PartitionSpec, x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, whole)


def _gather_forward(cut, whole, x):
    return _gather(cut, whole, x), None


def _gather_backward(cut, whole, _, gradient):
    # Added up first: cut at once, an embedding's gradient would have the rows of all devices sent around.
    return (jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(gradient, whole), cut),)


_gather.defvjp(_gather_forward, _gather_backward)


@dataclasses.dataclass(frozen=True)
class MeshDevices:
    """All devices, in a mesh (a `Devices`).

    Attributes:
      shape: of the mesh, without a 0.
      own: whether it is made of this host's devices alone, rather than of those of all hosts.
    """

    shape: Mesh
    own: bool = False

    @property
    def count(self) -> int:
        return self.shape.data * self.shape.fsdp

    @property
    def devices(self) -> int:
        """Of all processes together."""
        return self.count * self.shape.tensor

    @property
    def local(self) -> int:
        return self.devices // self.share[1]

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        sizes = dataclasses.asdict(self.shape)
        devices = (jax.local_devices() if self.own else jax.devices())[: math.prod(sizes.values())]
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)

    @functools.cached_property
    def share(self) -> tuple[int, int]:
        portions = self._over(ROWS).addressable_devices_indices_map((self.count,)).values()
        starts = {rows.start or 0 for (rows,) in portions}
        return min(starts) // len(starts), self.count // len(starts)

    def replicate(self, tree: Tree, axes: Tree = "") -> Tree:
        return jax.tree.map(self._put, axes, tree)

    def shard(self, batch: Tree) -> Tree:
        rows = self._over(ROWS)
        if self.share == (0, 1):
            return jax.device_put(batch, rows)
        return jax.tree.map(functools.partial(_joined, rows, self.share), batch)

    def to_host(self, tree: Tree) -> Tree:
        return jax.device_get(tree)  # over the devices of one host

    def unreplicate(self, tree: Tree) -> Tree:
        return tree

    def replicate_shapes(self, tree: Tree, axes: Tree = "") -> Tree:
        """Shapes and layouts of what `put` would make of arrays of these shapes; they take no memory."""
        like = lambda names, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._layout(names, x.shape))  # noqa: E731
        return jax.tree.map(lambda names, part: jax.tree.map(functools.partial(like, names), part), axes, tree)

    def shard_shapes(self, batch: Tree) -> Tree:
        """The same of `cut`."""
        rows = self._over(ROWS)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), batch)

    def compile(self, function: Callable[[Tree, Tree], Tree]) -> Compiled:
        return jax.jit(self._within(function), out_shardings=self._over(ROWS))

    def compile_sums(self, function: Callable[..., Tree], donate: bool = False) -> Compiled:
        step = self._within(functools.partial(function, all_sum=lambda tree: tree))
        if not donate:
            return jax.jit(step, out_shardings=self._over())
        return _Kept(step, self._over())

    def _over(self, *axes: Any) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _put(self, names: str, tree: Tree) -> Tree:
        """What has axes of these names."""
        return jax.tree.map(lambda x: _placed(x, self._layout(names, x.shape)), tree)

    def _layout(self, names: str, shape: tuple[int, ...]) -> NamedSharding:
        return self._over(*partition(names, shape, dataclasses.asdict(self.shape)))

    def _within(self, function: Callable[..., Tree]) -> Callable[..., Tree]:
        """The function, traced where `row_shards` is this mesh's; JAX keeps such traces apart from others."""

        def traced(*arguments: Tree) -> Tree:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*arguments)

        return traced


class _Kept:
    """A compiled step whose result is (what its first argument becomes, sums): laid out as the first argument is.

    So the next call finds what this one found, and nothing is compiled twice.
    """

    def __init__(self, step: Callable[..., tuple[Tree, Tree]], whole: NamedSharding):
        def laid_out(layout: tuple[Any, ...], *arguments: Tree) -> tuple[Tree, Tree]:
            changed, sums = step(*arguments)
            leaves, tree = jax.tree.flatten(changed)
            kept = map(jax.lax.with_sharding_constraint, leaves, layout)
            return jax.tree.unflatten(tree, kept), jax.lax.with_sharding_constraint(sums, whole)

        self._jitted = jax.jit(laid_out, static_argnums=0, donate_argnums=1)

    def __call__(self, *arguments: Tree) -> tuple[Tree, Tree]:
        return self._jitted(_layouts(arguments[0]), *arguments)

    def lower(self, *arguments: Tree) -> Any:
        return self._jitted.lower(_layouts(arguments[0]), *arguments)


def _joined(rows: NamedSharding, share: tuple[int, int], x: Any) -> jax.Array:
    """A batch's array [B, ...], of which each host has the rows of its share."""
    shape, before = (len(x) * share[1], *x.shape[1:]), share[0] * len(x)
    places, count = rows.addressable_devices_indices_map(shape), rows.shard_shape(shape)[0]
    starts = {device: (index[0].start or 0) - before for device, index in places.items()}
    parts = [jax.device_put(x[start : start + count], device) for device, start in starts.items()]
    return jax.make_array_from_single_device_arrays(shape, rows, parts)


def _placed(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array in a mesh: each host gives its devices' parts of what all of them have, or of what is spread already."""
    spread = isinstance(x, jax.Array) and not x.is_fully_addressable
    if spread or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _layouts(tree: Tree) -> tuple[Any, ...]:
    return tuple(x.sharding for x in jax.tree.leaves(tree))
