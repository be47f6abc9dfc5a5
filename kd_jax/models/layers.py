"""The layers that know nothing of attention: projections, norms, dropout, feed-forward.

Matrix products run on [tokens, D] with all projections of one input in one product: on CPU this is a
quarter of the step.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.transformer import Transformer
from kd_jax.types import Array

KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
NORMS = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
ACTIVATIONS = {"relu": nn.relu, "gelu": functools.partial(nn.gelu, approximate=False), "gelu_tanh": nn.gelu}
GATES = {"swiglu": nn.silu, "geglu": nn.gelu}


def new_norm(config: Transformer) -> nn.Module:
    """A norm over the last axis, as configured."""
    return NORMS[config.norm](epsilon=config.norm_epsilon)


def project(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """x @ kernel + bias over the last axis, every other axis flattened."""
    flat = x.reshape(-1, x.shape[-1]) @ kernel
    return (flat if bias is None else flat + bias[None]).reshape(*x.shape[:-1], kernel.shape[1])


class Dense(nn.Module):
    """x @ kernel, and a bias where `bias`."""

    features: int
    bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", KERNEL_INIT, (x.shape[-1], self.features))
        return project(x, kernel, self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else None)


class Dropout(nn.Module):
    """Zeroes each element with probability `rate` (in 256ths) and scales the others up.

    Keys are folded per example, not per device, so an example meets the same noise on any number of
    devices and in any microbatch. Four elements share one 32-bit draw.
    """

    rate: float

    @nn.compact
    def __call__(self, x_BTD: Array, index_B: Array) -> Array:
        keep = round(256 * (1 - self.rate))
        if keep == 256 or not self.has_rng("dropout"):
            return x_BTD
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), index_B)
        size = x_BTD[0].size
        bits = jax.vmap(lambda key: jax.random.bits(key, (-(-size // 4),), jnp.uint32))(keys_B)
        bytes_BX = jax.lax.bitcast_convert_type(bits, jnp.uint8).reshape(x_BTD.shape[0], -1)[:, :size]
        return jnp.where(bytes_BX.reshape(x_BTD.shape) < keep, x_BTD * (256 / keep), jnp.zeros_like(x_BTD))


class FeedForward(nn.Module):
    """act(x W) W', or gated, (act(x W) * x V) W' with W and V in one product."""

    config: Transformer

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        c = self.config
        gated = c.activation in GATES
        inner = Dense((1 + gated) * c.d_ff, c.biases, name="in")(x_BTD)
        if gated:
            gate, up = jnp.split(inner, 2, axis=-1)
            inner = GATES[c.activation](gate) * up
        else:
            inner = ACTIVATIONS[c.activation](inner)
        return Dense(c.d_model, c.biases, name="out")(inner)
