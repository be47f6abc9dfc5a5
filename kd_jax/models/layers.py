"""Layers without attention: projections, norms, dropout, feed-forward."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.batches.buckets import MAX_LENGTH
from kd_jax.models.transformer import Compute, Transformer
from kd_jax.types import Array, Params, Tokens

KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
ACTIVATIONS = {
    "relu": nn.relu,
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": nn.gelu,
}
GATES = {"swiglu": nn.silu, "geglu": nn.gelu}


class HeadNorm(nn.RMSNorm):
    """RMSNorm of each head's queries or keys, or of those of all heads together, computed in float32."""

    def __call__(self, x: Array) -> Array:
        """Return x, normalised over the last axis, in its dtype."""
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + epsilon) * scale, computed in float32, with its output as a tap."""

    def __call__(self, x_BTD: Array) -> Array:
        """Return x, normalised over the last axis, in its dtype."""
        normed_BTD = super().__call__(x_BTD.astype(jnp.float32)).astype(x_BTD.dtype)
        self.sow("taps", "out", normed_BTD)
        return normed_BTD


class LayerNorm(nn.LayerNorm):
    """(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias, computed in float32, with its output as a tap."""

    def __call__(self, x_BTD: Array) -> Array:
        """Return x, normalised over the last axis, in its dtype."""
        normed_BTD = super().__call__(x_BTD.astype(jnp.float32)).astype(x_BTD.dtype)
        self.sow("taps", "out", normed_BTD)
        return normed_BTD


def new_norm(config: Transformer) -> RMSNorm | LayerNorm:
    """Return a new norm over the last axis, as configured."""
    if config.norm == "rms":
        return RMSNorm(epsilon=config.norm_epsilon)
    return LayerNorm(epsilon=config.norm_epsilon)


def cast_matrices(params: Params, compute: Compute) -> Params:
    """Return the parameters with the layers' matrices in the dtype `compute`.

    The embedding stays in float32: the gradient of a row is a sum over all positions of its token.

    Examples:
      >>> params = cast_matrices({"in": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}, "bfloat16")
      >>> params["in"]["kernel"].dtype, params["in"]["bias"].dtype
      (dtype(bfloat16), dtype('float32'))
    """
    if compute == "float32":
        return params

    def cast(path: tuple[Any, ...], x: Array) -> Array:
        return x.astype(jnp.bfloat16) if path[-1].key in ("kernel", "kv") else x

    return jax.tree_util.tree_map_with_path(cast, params)


def project(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """Return x @ kernel + bias over the last axis."""
    # On CPU one product of two matrices is faster than a batched one, so all other axes are flattened.
    flat = x.reshape(-1, x.shape[-1]) @ kernel
    if bias is not None:
        # The bias is added in its own dtype: its gradient is a sum over all tokens.
        flat = (flat.astype(bias.dtype) + bias[None]).astype(flat.dtype)
    return flat.reshape(*x.shape[:-1], kernel.shape[1])


class Dense(nn.Module):
    """x @ kernel, plus a bias if `bias` is true."""

    features: int
    bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the projection [..., features]."""
        kernel = self.param("kernel", KERNEL_INIT, (x.shape[-1], self.features))
        return project(x, kernel, self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else None)


def token_numbers(tokens: Tokens) -> Array:
    """Return a number for each token from its example and position, uint32 [B, T]; the row does not matter."""
    return tokens.segment_BT.astype(jnp.uint32) * MAX_LENGTH + tokens.position_BT.astype(jnp.uint32)


class Dropout(nn.Module):
    """Dropout whose noise depends on a token's example and position, not on its row or device.

    Each element is zeroed with probability `rate` (in 256ths); the others are scaled up. An example gets the same noise
    on any number of devices, in any microbatch, alone or packed. Four elements share one 32-bit draw.
    """

    rate: float

    @nn.compact
    def __call__(self, x_BTD: Array, number_BT: Array | None) -> Array:
        """Return x_BTD with dropout; unchanged without a "dropout" key, or without `token_numbers` (in decoding)."""
        keep = round(256 * (1 - self.rate))
        if keep == 256 or number_BT is None or not self.has_rng("dropout"):
            return x_BTD
        width = x_BTD.shape[-1]
        keys_N = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), number_BT.reshape(-1))
        bits_NX = jax.vmap(lambda key: jax.random.bits(key, (-(-width // 4),), jnp.uint32))(keys_N)
        bytes_ND = jax.lax.bitcast_convert_type(bits_NX, jnp.uint8).reshape(len(keys_N), -1)[:, :width]
        return jnp.where(bytes_ND.reshape(x_BTD.shape) < keep, x_BTD * (256 / keep), jnp.zeros_like(x_BTD))


class FeedForward(nn.Module):
    """act(x W) W', or if gated (act(x W) * x V) W', with W and V in one product."""

    config: Transformer

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """Return the output [B, T, D]; sow the neurons' activations as a tap."""
        c = self.config
        gated = c.activation in GATES
        inner = Dense((1 + gated) * c.d_ff, c.biases == "all", name="in")(x_BTD)
        if gated:
            gate, up = jnp.split(inner, 2, axis=-1)
            inner = GATES[c.activation](gate) * up
        else:
            inner = ACTIVATIONS[c.activation](inner)
        self.sow("taps", "neurons", inner)
        return Dense(c.d_model, c.biases == "all", name="out")(inner)
