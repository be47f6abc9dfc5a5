"""How steps are spread over devices."""

import contextlib

import jax

from kd_jax.errors import KdError
from kd_jax.parallel.base import Devices
from kd_jax.parallel.mesh import DATA_PARALLEL, Mesh, OnMesh
from kd_jax.parallel.one_device import OneDevice
from kd_jax.parallel.pmap import Pmap

BACKENDS = {
    "auto": lambda mesh: OneDevice() if jax.device_count() == 1 else Pmap(jax.local_device_count()),
    "jit": lambda mesh: OneDevice(),
    "pmap": lambda mesh: Pmap(jax.local_device_count()),
    "mesh": lambda mesh: OnMesh(mesh.over(jax.device_count())),
}


def check(backend: str, mesh: Mesh = DATA_PARALLEL) -> None:
    """Raises KdError for an unknown backend, a mesh of another number of devices, or one that nobody would use."""
    if backend not in BACKENDS:
        raise KdError(f"backend: {backend!r}; wanted one of {', '.join(BACKENDS)}")
    if backend == "mesh":
        mesh.over(jax.device_count())
    elif mesh != DATA_PARALLEL:
        raise KdError(f"backend: {backend!r} has no use for {mesh}; wanted backend='mesh', or no mesh")


def pretend(count: int) -> None:
    """This process's devices are so many of the CPU: for programs that are compiled and never run.

    Raises:
      KdError: if JAX has begun with fewer, and cannot begin again.

    Examples:
      >>> pretend(jax.device_count())  # as it is
    """
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # it has begun
        jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() < count:
        raise KdError(f"--devices {count}: JAX has begun with {jax.device_count()}; wanted a process of its own")


def as_mesh(backend: str, mesh: Mesh, count: int) -> OnMesh:
    """What `count` devices do with this backend, as a mesh: "auto" and "pmap" cut the rows alone.

    Raises:
      KdError: for "jit" and several devices, of which it has no use, and as Mesh.over.

    Examples:
      >>> as_mesh("auto", DATA_PARALLEL, 256).shape
      Mesh(data=256, fsdp=1, tensor=1)
    """
    if backend == "jit" and count > 1:
        raise KdError(f"backend: 'jit' works on one device, --devices {count}; wanted auto, pmap or mesh")
    return OnMesh((mesh if backend == "mesh" else DATA_PARALLEL).over(count))


def devices(backend: str = "auto", mesh: Mesh = DATA_PARALLEL) -> Devices:
    """The devices: "jit" for one, "pmap" for all, "auto" for pmap where there are several, "mesh" for all in a mesh.

    Raises:
      KdError: as `check`.

    Examples:
      >>> devices("jit").count
      1
    """
    check(backend, mesh)
    return BACKENDS[backend](mesh)
