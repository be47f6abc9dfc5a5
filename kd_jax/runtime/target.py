"""The platform that programs are traced for. Kernels and a few optimisations depend on it."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal, cast

import jax

Platform = Literal["cpu", "gpu", "tpu", "any"]

_platform: ContextVar[Platform | None] = ContextVar("platform", default=None)


def target_platform() -> Platform:
    """Return the platform for which a program is traced: that of JAX's devices, unless `lowering_for` is set."""
    return _platform.get() or cast(Platform, jax.default_backend())


def is_for_cpu() -> bool:
    """Return whether programs are traced for a CPU, or for any platform.

    Some operations have a form that XLA's CPU backend runs faster; accelerators get the plain form.
    """
    return target_platform() in ("cpu", "any")


@contextlib.contextmanager
def lowering_for(platform: Platform) -> Iterator[None]:
    """Trace programs for another platform than the one at hand; "any" for code that every platform can run.

    Functions that are jitted already keep their traces.

    Examples:
      >>> with lowering_for("tpu"):
      ...     target_platform()
      'tpu'
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)
