"""How steps are spread over devices."""

import contextlib
import dataclasses

import jax

from kd_jax.errors import KdError
from kd_jax.runtime import hosts
from kd_jax.runtime.devices import Devices
from kd_jax.runtime.mesh import DATA_PARALLEL, Mesh, MeshDevices
from kd_jax.runtime.one_device import OneDevice
from kd_jax.runtime.pmap import PmapDevices

BACKENDS = ("auto", "jit", "pmap", "mesh")


def check(backend: str, mesh: Mesh = DATA_PARALLEL) -> None:
    """Raises KdError for an unknown backend, one that does not suit the hosts, or a mesh that does not the devices."""
    if backend not in BACKENDS:
        raise KdError(f"backend: {backend!r}; wanted one of {', '.join(BACKENDS)}")
    several = hosts.process().count > 1
    if several and backend in ("jit", "pmap"):
        raise KdError(f"backend: {backend!r} is for one host, these are {hosts.process().count}; wanted 'mesh' or 'auto'")
    if backend == "mesh" or several:
        whole, own = mesh.over(jax.device_count()), jax.local_device_count()
        if own % (whole.fsdp * whole.tensor):
            raise KdError(
                f"mesh: fsdp {whole.fsdp} x tensor {whole.tensor}; the {own} devices of a host must hold whole copies "
                "of the parameters, or it could not write its share of the cache; wanted a product that divides them"
            )
    elif mesh != DATA_PARALLEL:
        raise KdError(f"backend: {backend!r} has no use for {mesh}; wanted backend='mesh', or no mesh")


def simulate_devices(count: int) -> None:
    """This process's devices are so many of the CPU: for programs that are compiled and never run.

    Raises:
      KdError: if JAX has begun with fewer, and cannot begin again.

    Examples:
      >>> simulate_devices(jax.device_count())  # as it is
    """
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # it has begun
        jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() < count:
        raise KdError(f"--devices {count}: JAX has begun with {jax.device_count()}; wanted a process of its own")


def as_mesh(backend: str, mesh: Mesh, count: int) -> MeshDevices:
    """What `count` devices do with this backend, as a mesh: "auto" and "pmap" cut the rows alone.

    Raises:
      KdError: for "jit" and several devices, of which it has no use, and as Mesh.over.

    Examples:
      >>> as_mesh("auto", DATA_PARALLEL, 256).shape
      Mesh(data=256, fsdp=1, tensor=1)
    """
    if backend == "jit" and count > 1:
        raise KdError(f"backend: 'jit' works on one device, --devices {count}; wanted auto, pmap or mesh")
    return MeshDevices((mesh if backend == "mesh" else DATA_PARALLEL).over(count))


def make_devices(backend: str = "auto", mesh: Mesh = DATA_PARALLEL) -> Devices:
    """The devices: "jit" for one, "pmap" for all of a host, "mesh" for all of all hosts in a mesh.

    "auto" is the mesh where there are several hosts, else pmap where there are several devices, else jit.

    Raises:
      KdError: as `check`.

    Examples:
      >>> make_devices("jit").count
      1
    """
    if backend == "jit" and mesh == DATA_PARALLEL:
        return OneDevice()
    check(backend, mesh)
    if backend == "mesh" or hosts.process().count > 1:
        return MeshDevices(mesh.over(jax.device_count()))
    count = jax.local_device_count()
    return PmapDevices(count) if backend == "pmap" or count > 1 else OneDevice()


def local_devices(backend: str = "auto", mesh: Mesh = DATA_PARALLEL) -> Devices:
    """This host's devices, for work that the hosts share out among them; as `devices` where there is one host."""
    if hosts.process().count == 1:
        return make_devices(backend, mesh)
    check(backend, mesh)
    return MeshDevices(dataclasses.replace(mesh, data=0).over(jax.local_device_count()), own=True)
