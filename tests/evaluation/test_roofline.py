"""Memory of a compiled program, and the bound of a chip."""

import jax
import jax.numpy as jnp

from kd_jax.evaluation.roofline import Roofline, device_memory


def test_device_memory_counts_arguments_and_outputs_once():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    compiled = jax.jit(lambda x: x + 1).lower(x).compile()
    donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    assert device_memory(compiled) >= 2 * 4 * 256 * 256
    assert device_memory(compiled) - device_memory(donated) == 4 * 256 * 256  # the output takes the argument's place


def test_roofline_is_bound_by_the_slowest():
    bounds = Roofline(compute=1.0, memory=2.0, collectives=3.0)
    assert bounds.seconds == 3.0 and bounds.bound == "collective-bound"
