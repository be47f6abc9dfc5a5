"""The choice of a device backend: one device, pmap or a mesh."""

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
    """Check that a backend is known and that it and the mesh fit the hosts and devices."""
    if backend not in BACKENDS:
        raise KdError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}. Choose one of them.")
    host_count = hosts.process().count
    if host_count > 1 and backend in ("jit", "pmap"):
        raise KdError(f"backend: expected 'mesh' or 'auto' on {host_count} hosts, got {backend!r}. Choose one of them.")
    if backend == "mesh" or host_count > 1:
        sizes, local = mesh.over(jax.device_count()), jax.local_device_count()
        if local % (sizes.fsdp * sizes.tensor):
            raise KdError(
                f"mesh: expected fsdp x tensor to divide the {local} devices of a host, got fsdp {sizes.fsdp} x tensor "
                f"{sizes.tensor}. Choose smaller ones: a host needs whole parameters to write its share of the cache."
            )
    elif mesh != DATA_PARALLEL:
        raise KdError(f"mesh: expected no mesh with backend {backend!r}, got {mesh}. Set --backend mesh, or no mesh.")


def simulate_devices(count: int) -> None:
    """Give this process `count` CPU devices, for programs that are compiled and never run."""
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() < count:
        raise KdError(
            f"--devices: expected at most {jax.device_count()} in a process where JAX has started, got {count}. "
            "Run the command in a new process."
        )


def as_mesh(backend: str, mesh: Mesh, count: int) -> MeshDevices:
    """Return the mesh that corresponds to a backend on `count` devices; "auto" and "pmap" shard rows alone.

    Examples:
      >>> as_mesh("auto", DATA_PARALLEL, 256).shape
      Mesh(data=256, fsdp=1, tensor=1)
    """
    if backend == "jit" and count > 1:
        raise KdError(f"backend: expected auto, pmap or mesh for {count} devices, got 'jit'. Choose one of them.")
    return MeshDevices((mesh if backend == "mesh" else DATA_PARALLEL).over(count))


def make_devices(backend: str = "auto", mesh: Mesh = DATA_PARALLEL) -> Devices:
    """Return the devices of a backend: one ("jit"), all of a host ("pmap"), or all of all hosts ("mesh").

    "auto" is the mesh with several hosts, pmap with several devices, and jit otherwise.
    """
    if backend == "jit" and mesh == DATA_PARALLEL:
        return OneDevice()
    check(backend, mesh)
    if backend == "mesh" or hosts.process().count > 1:
        return MeshDevices(mesh.over(jax.device_count()))
    count = jax.local_device_count()
    return PmapDevices(count) if backend == "pmap" or count > 1 else OneDevice()


def local_devices(backend: str = "auto", mesh: Mesh = DATA_PARALLEL) -> Devices:
    """Return this host's devices, for work that hosts divide among them; with one host as `make_devices`."""
    if hosts.process().count == 1:
        return make_devices(backend, mesh)
    check(backend, mesh)
    return MeshDevices(dataclasses.replace(mesh, data=0).over(jax.local_device_count()), own=True)
