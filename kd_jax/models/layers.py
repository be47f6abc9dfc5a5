"""The layers that know nothing of attention: projections, norms, dropout, feed-forward.

Matrix products run on [tokens, D] with all projections of one input in one product: on CPU this is a
quarter of the step.
"""

import functools

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


class InFloat32:
    """A norm that computes in float32, whatever it reads."""

    def __call__(self, x: Array) -> Array:
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


class Tapped(InFloat32):
    """A norm whose output is tapped."""

    def __call__(self, x_BTD: Array) -> Array:
        normed_BTD = super().__call__(x_BTD)
        self.sow("taps", "out", normed_BTD)
        return normed_BTD


class HeadNorm(InFloat32, nn.RMSNorm):
    """Of each head's queries or keys; not tapped."""


class RMSNorm(Tapped, nn.RMSNorm):
    """x / sqrt(mean(x^2) + epsilon) * scale."""


class LayerNorm(Tapped, nn.LayerNorm):
    """(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias."""


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


def rounded(params: Params, compute: Compute) -> Params:
    """The parameters as the layers use them: with the matrices of their products in bfloat16, if that is asked for.

    The embedding among the others stays as it is: a row's gradient is a sum over all places where its token stands.

    Examples:
      >>> params = rounded({"in": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}, "bfloat16")
      >>> params["in"]["kernel"].dtype, params["in"]["bias"].dtype
      (dtype(bfloat16), dtype('float32'))
    """
    if compute == "float32":
        return params
    narrow = lambda path, x: x.astype(jnp.bfloat16) if path[-1].key in ("kernel", "kv") else x  # noqa: E731
    return jax.tree_util.tree_map_with_path(narrow, params)


def new_norm(config: Transformer) -> nn.Module:
    """A norm over the last axis, as configured."""
    return NORMS[config.norm](epsilon=config.norm_epsilon)


def project(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """x @ kernel + bias over the last axis, every other axis flattened.

    The bias is added in its own type: so its gradient, a sum over all tokens, is too.
    """
    flat = x.reshape(-1, x.shape[-1]) @ kernel
    flat = flat if bias is None else (flat.astype(bias.dtype) + bias[None]).astype(flat.dtype)
    return flat.reshape(*x.shape[:-1], kernel.shape[1])


class Dense(nn.Module):
    """x @ kernel, and a bias where `bias`."""

    features: int
    bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", KERNEL_INIT, (x.shape[-1], self.features))
        return project(x, kernel, self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else None)


def token_numbers(tokens: Tokens) -> Array:
    """One number for each token, uint32 [B, T]: of its example and its place there, whatever row they stand in."""
    return tokens.segment_BT.astype(jnp.uint32) * MAX_LENGTH + tokens.position_BT.astype(jnp.uint32)


class Dropout(nn.Module):
    """Zeroes each element with probability `rate` (in 256ths) and scales the others up.

    Keys are folded per token of an example, not per device or row, so an example meets the same noise on any number
    of devices, in any microbatch, alone or packed. Four elements share one 32-bit draw.
    """

    rate: float

    @nn.compact
    def __call__(self, x_BTD: Array, number_BT: Array) -> Array:
        keep = round(256 * (1 - self.rate))
        if keep == 256 or not self.has_rng("dropout"):
            return x_BTD
        width = x_BTD.shape[-1]
        keys_N = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), number_BT.reshape(-1))
        bits_NX = jax.vmap(lambda key: jax.random.bits(key, (-(-width // 4),), jnp.uint32))(keys_N)
        bytes_ND = jax.lax.bitcast_convert_type(bits_NX, jnp.uint8).reshape(len(keys_N), -1)[:, :width]
        return jnp.where(bytes_ND.reshape(x_BTD.shape) < keep, x_BTD * (256 / keep), jnp.zeros_like(x_BTD))


class FeedForward(nn.Module):
    """act(x W) W', or gated, (act(x W) * x V) W' with W and V in one product."""

    config: Transformer

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
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
