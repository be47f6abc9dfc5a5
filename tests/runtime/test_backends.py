"""The choice of a backend: all devices by default; unknown ones and meshes that do not fit are refused."""

import jax
import pytest

from kd_jax.errors import KdError
from kd_jax.runtime.backends import check, make_devices, simulate_devices
from kd_jax.runtime.mesh import Mesh


def test_auto_takes_all_devices():
    assert make_devices().count == jax.local_device_count() == 8


@pytest.mark.parametrize("refuse", [check, make_devices])
def test_unknown_backend_is_refused(refuse):
    with pytest.raises(KdError, match="backend: expected one of auto, jit, pmap, mesh, got 'gpu'"):
        refuse("gpu")


@pytest.mark.parametrize(
    "backend, mesh, message",
    [
        ("mesh", Mesh(3, 2, 1), r"mesh: expected data x fsdp x tensor = 8 devices, got 3 x 2 x 1 = 6\."),
        ("mesh", Mesh(tensor=3), r"mesh: expected data x fsdp x tensor = 8 devices, got 2 x 1 x 3 = 6\."),
        ("mesh", Mesh(fsdp=16), r"mesh: expected data x fsdp x tensor = 8 devices, got 1 x 16 x 1 = 16\."),
        ("mesh", Mesh(fsdp=0), r"mesh.fsdp: expected an integer in \[1, \d+\], got 0\."),
        (
            "pmap",
            Mesh(fsdp=2),
            r"mesh: expected no mesh with backend 'pmap', got Mesh\(data=0, fsdp=2, tensor=1\)\.",
        ),
    ],
)
@pytest.mark.parametrize("refuse", [check, make_devices])
def test_mesh_that_does_not_fit_is_refused(refuse, backend, mesh, message):
    with pytest.raises(KdError, match=message):
        refuse(backend, mesh)


def test_started_jax_gets_no_more_devices():
    assert jax.device_count() == 8
    with pytest.raises(KdError, match="--devices: expected at most 8 in a process where JAX has started, got 9"):
        simulate_devices(9)
    simulate_devices(8)
