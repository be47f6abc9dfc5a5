"""How steps are spread over devices."""

import jax

from kd_jax.errors import KdError
from kd_jax.parallel.base import Devices
from kd_jax.parallel.one_device import OneDevice
from kd_jax.parallel.pmap import Pmap

BACKENDS = {
    "auto": lambda: OneDevice() if jax.device_count() == 1 else Pmap(jax.local_device_count()),
    "jit": OneDevice,
    "pmap": lambda: Pmap(jax.local_device_count()),
}


def check(backend: str) -> None:
    """Raises KdError for an unknown backend."""
    if backend not in BACKENDS:
        raise KdError(f"backend: {backend!r}; wanted one of {', '.join(BACKENDS)}")


def devices(backend: str = "auto") -> Devices:
    """This process's devices: "jit" for one, "pmap" for all, "auto" for pmap where there are several.

    Raises:
      KdError: for an unknown backend.

    Examples:
      >>> devices("jit").count
      1
    """
    check(backend)
    return BACKENDS[backend]()
