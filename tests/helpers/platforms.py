"""Tracing for an accelerator on a machine without."""

import contextlib

import jax
from jax.sharding import AbstractDevice, AbstractMesh

from kd_jax.runtime.target import lowering_for


@contextlib.contextmanager
def tracing_for(platform):
    """Trace for "tpu" or "cuda". From JAX 0.11 on, Pallas asks which GPU a program is for."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(lowering_for("gpu" if platform == "cuda" else platform))
        if platform == "cuda":
            device = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
            mesh = AbstractMesh((1,), ("one",), abstract_device=device)
            stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
        yield
