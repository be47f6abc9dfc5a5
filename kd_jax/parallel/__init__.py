"""How steps are spread over devices."""

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
