"""The blocks that encoder and decoder are made of (Vaswani et al. 2017, arXiv 1706.03762, with pre-norm).

Matrix products run on [tokens, D] with all projections of one input in one product: on CPU this is a
quarter of the step. Parameters carry no biases.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.types import Array

KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
NORMS = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
MASKED = -1e9


def sinusoids(length: int, d_model: int) -> Array:
    """Position encodings, float32 [length, d_model] (arXiv 1706.03762, section 3.5; sines first, then cosines)."""
    rates = 10_000.0 ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :d_model]


class Dense(nn.Module):
    """x @ kernel over the last axis, every other axis flattened."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", KERNEL_INIT, (x.shape[-1], self.features))
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], self.features)


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


def split_heads(x_BTD: Array, heads: int) -> Array:
    """[B, T, D] to [B, H, T, D/H]."""
    return x_BTD.reshape(*x_BTD.shape[:2], heads, -1).swapaxes(1, 2)


def attend(q_BHTd: Array, k_BHSd: Array, v_BHSd: Array, bias: Array) -> Array:
    """softmax(q k' / sqrt(d) + bias) v per head, heads side by side again: [B, T, D].

    Examples and heads are one batch axis of both products: on CPU their gradient is a quarter faster so.
    bias is [B or 1, 1, T or 1, S].
    """
    q_NTd, k_NSd, v_NSd = (x.reshape(-1, *x.shape[2:]) for x in (q_BHTd, k_BHSd, v_BHSd))
    batch, heads, length, _ = q_BHTd.shape
    scores_NTS = jnp.einsum("ntd,nsd->nts", q_NTd, k_NSd) * (q_NTd.shape[-1] ** -0.5)
    weights_BHTS = jax.nn.softmax(scores_NTS.reshape(batch, heads, length, -1) + bias, axis=-1)
    out_NTd = jnp.einsum("nts,nsd->ntd", weights_BHTS.reshape(scores_NTS.shape), v_NSd)
    return out_NTd.reshape(q_BHTd.shape).swapaxes(1, 2).reshape(batch, length, -1)


def mask_bias(mask: Array) -> Array:
    """0 where true, a large negative number elsewhere."""
    return jnp.where(mask, 0.0, MASKED)


def same_segment(query_BT: Array, key_BS: Array) -> Array:
    """Whether query and key belong to one example (padding to padding): bool [B, 1, T, S]."""
    return (query_BT[:, :, None] == key_BS[:, None, :])[:, None]


class SelfAttention(nn.Module):
    """Queries, keys and values from one product."""

    d_model: int
    heads: int

    def setup(self):
        self.qkv = Dense(3 * self.d_model)
        self.out = Dense(self.d_model)

    def __call__(self, x_BTD: Array, bias: Array) -> Array:
        return self.out(attend(*self.split(x_BTD), bias))

    def split(self, x_BTD: Array) -> list[Array]:
        """Queries, keys and values, each [B, H, T, D/H]."""
        parts = jnp.split(self.qkv(x_BTD), 3, axis=-1)
        for kind, part_BTD in zip("qkv", parts, strict=True):
            self.sow("taps", kind, part_BTD)
        return [split_heads(x, self.heads) for x in parts]

    def step(self, x_B1D: Array, kv: tuple[Array, Array], slot: Array) -> tuple[Array, tuple[Array, Array]]:
        """One token: its key and value enter the cache, each [B, H, T, D/H], at `slot`."""
        q, k, v = self.split(x_B1D)
        update = jax.lax.dynamic_update_slice_in_dim
        kv = update(kv[0], k, slot, 2), update(kv[1], v, slot, 2)
        seen = mask_bias(jnp.arange(kv[0].shape[2]) <= slot)[None, None, None, :]
        return self.out(attend(q, *kv, seen)), kv


class CrossAttention(nn.Module):
    """Queries from the decoder; keys and values are made for all layers at once by the caller."""

    d_model: int
    heads: int

    def setup(self):
        self.q = Dense(self.d_model)
        self.kv = self.param("kv", KERNEL_INIT, (self.d_model, 2 * self.d_model))
        self.out = Dense(self.d_model)

    def __call__(self, x_BTD: Array, kv: tuple[Array, Array], bias: Array) -> Array:
        return self.out(attend(split_heads(self.q(x_BTD), self.heads), *kv, bias))


class FeedForward(nn.Module):
    """relu(x W) W'."""

    d_model: int
    d_ff: int

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        return Dense(self.d_model, name="out")(nn.relu(Dense(self.d_ff, name="in")(x_BTD)))


class Block(nn.Module):
    """Self-attention, cross-attention where `cross`, feed-forward; each x + dropout(f(norm(x)))."""

    d_model: int
    heads: int
    d_ff: int
    dropout: float
    norm: str
    cross: bool

    def setup(self):
        norm = NORMS[self.norm]
        self.self_norm, self.ffn_norm, self.drop = norm(), norm(), Dropout(self.dropout)
        self.self_attention = SelfAttention(self.d_model, self.heads)
        self.ffn = FeedForward(self.d_model, self.d_ff)
        if self.cross:
            self.cross_norm = norm()
            self.cross_attention = CrossAttention(self.d_model, self.heads)

    def __call__(self, x_BTD: Array, bias: Array, index_B: Array, cross_kv=None, cross_bias=None) -> Array:
        x_BTD += self.drop(self.self_attention(self.self_norm(x_BTD), bias), index_B)
        if self.cross:
            x_BTD += self.drop(self.cross_attention(self.cross_norm(x_BTD), cross_kv, cross_bias), index_B)
        x_BTD += self.drop(self.ffn(self.ffn_norm(x_BTD)), index_B)
        self.sow("taps", "hidden", x_BTD)
        return x_BTD

    def step(self, x_B1D: Array, kv: tuple[Array, Array], slot: Array, cross_kv=None, cross_bias=None):
        """One token without dropout; returns (x_B1D, kv)."""
        attended, kv = self.self_attention.step(self.self_norm(x_B1D), kv, slot)
        x_B1D += attended
        if self.cross:
            x_B1D += self.cross_attention(self.cross_norm(x_B1D), cross_kv, cross_bias)
        return x_B1D + self.ffn(self.ffn_norm(x_B1D)), kv
