"""Self-attention and cross-attention. In names, G is the number of key heads and d the width of a head."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.attend import Attend
from kd_jax.models.base import KeyValue
from kd_jax.models.layers import KERNEL_INIT, Dense, HeadNorm, project
from kd_jax.models.positions import Rotary, apply_rotary
from kd_jax.models.transformer import Transformer
from kd_jax.types import Array, Params


class AttentionContext(NamedTuple):
    """Attention and positions that all layers of a stack share.

    Attributes:
      attend: self-attention of (queries, keys, values, whether the layer is local).
      rotary: rotary embedding of the positions; None if positions are not rotary.
      local_rotary: rotary embedding of local layers; None if no layer is local.
      cross_attend: cross-attention, as `attend`; None without a source.
      slot: int32 scalar, where new keys and values are written into the cache; unused without a cache.
    """

    attend: Attend
    rotary: Rotary | None
    local_rotary: Rotary | None = None
    cross_attend: Attend | None = None
    slot: Array | int = 0


def split_heads(x_BTD: Array, heads: int) -> Array:
    """Return [B, T, D] as [B, H, T, D / H]."""
    batch, length, width = x_BTD.shape
    return x_BTD.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


class SelfAttention(nn.Module):
    """Self-attention, with queries, keys and values from one product."""

    config: Transformer

    def setup(self):
        """Create the projections and the norms of heads."""
        c = self.config
        self.qkv = Dense((c.heads + 2 * c.key_heads) * c.head_width, c.biases != "none")
        self.out = Dense(c.d_model, c.biases == "all")
        if c.qk_norm:
            self.q_norm, self.k_norm = HeadNorm(epsilon=c.norm_epsilon), HeadNorm(epsilon=c.norm_epsilon)

    def __call__(
        self, x_BTD: Array, attention: AttentionContext, local: Any, cached_kv: KeyValue | None = None
    ) -> tuple[Array, KeyValue]:
        """Return (output_BTD, keys and values [B, G, S, d]); without `cached_kv`, attend within `x_BTD`."""
        c = self.config
        q_BHTd, k_BGSd, v_BGSd = self.project_heads(x_BTD)
        if c.qk_norm and not c.qk_norm_joint:
            q_BHTd, k_BGSd = self.q_norm(q_BHTd), self.k_norm(k_BGSd)
        if attention.rotary is not None:
            q_BHTd, k_BGSd = apply_rotary(q_BHTd, attention.rotary), apply_rotary(k_BGSd, attention.rotary)
        if cached_kv is not None:
            k_BGSd = jax.lax.dynamic_update_slice_in_dim(cached_kv[0], k_BGSd, attention.slot, axis=2)
            v_BGSd = jax.lax.dynamic_update_slice_in_dim(cached_kv[1], v_BGSd, attention.slot, axis=2)
        heads_BTD = attention.attend(q_BHTd, k_BGSd, v_BGSd, local)
        self.sow("taps", "heads", heads_BTD)
        return self.out(heads_BTD), (k_BGSd, v_BGSd)

    def project_heads(self, x_BTD: Array) -> tuple[Array, Array, Array]:
        """Return queries [B, H, T, d], keys and values [B, G, T, d]; sow them as taps before they are split."""
        c = self.config
        ends = [c.heads * c.head_width, (c.heads + c.key_heads) * c.head_width]
        q_BTD, k_BTD, v_BTD = jnp.split(self.qkv(x_BTD), ends, axis=-1)
        self.sow("taps", "q", q_BTD)
        self.sow("taps", "k", k_BTD)
        self.sow("taps", "v", v_BTD)
        if c.qk_norm_joint:
            q_BTD, k_BTD = self.q_norm(q_BTD), self.k_norm(k_BTD)
        return split_heads(q_BTD, c.heads), split_heads(k_BTD, c.key_heads), split_heads(v_BTD, c.key_heads)


class CrossAttention(nn.Module):
    """Cross-attention from the decoder to the encoder; `cross_kv` computes the keys and values of all layers."""

    config: Transformer

    def setup(self):
        """Create the projections and the norms of heads."""
        c = self.config
        width = c.key_heads * c.head_width
        self.q, self.out = Dense(c.heads * c.head_width, c.biases != "none"), Dense(c.d_model, c.biases == "all")
        self.kv = self.param("kv", KERNEL_INIT, (c.d_model, 2 * width))
        self.kv_bias = self.param("kv_bias", nn.initializers.zeros, (2 * width,)) if c.biases != "none" else None
        if c.qk_norm:
            self.q_norm, self.k_norm = HeadNorm(epsilon=c.norm_epsilon), HeadNorm(epsilon=c.norm_epsilon)

    def __call__(self, x_BTD: Array, kv: KeyValue, attend: Attend) -> Array:
        """Return the output [B, T, D]."""
        c = self.config
        q_BHTd = split_heads(self.q(x_BTD), c.heads)
        if c.qk_norm:
            q_BHTd = self.q_norm(q_BHTd)
        heads_BTD = attend(q_BHTd, *kv, False)
        self.sow("taps", "heads", heads_BTD)
        return self.out(heads_BTD)


def cross_kv(layers: list[CrossAttention], memory_BSD: Array) -> tuple[KeyValue, ...]:
    """Return the keys and values of each layer, [B, G, S, d], from one product with the encoder's states."""
    c = layers[0].config
    kernel = jnp.concatenate([layer.kv for layer in layers], axis=1)
    biases = [layer.kv_bias for layer in layers if layer.kv_bias is not None]
    bias = jnp.concatenate(biases) if biases else None
    parts = jnp.split(project(memory_BSD, kernel, bias), 2 * len(layers), axis=-1)
    heads = [split_heads(part, c.key_heads) for part in parts]
    keys = [layer.k_norm(k) if c.qk_norm else k for layer, k in zip(layers, heads[::2], strict=True)]
    return tuple(zip(keys, heads[1::2], strict=True))


def stacked_cross_kv(config: Transformer, params: Params, memory_BSD: Array) -> KeyValue:
    """Return `cross_kv` for stacked parameters: keys and values [layers, B, G, S, d]."""
    batch, length, width = memory_BSD.shape
    depth = len(params["kv"])
    kernel = params["kv"].swapaxes(0, 1).reshape(width, -1)
    bias = params["kv_bias"].reshape(-1) if config.biases != "none" else None
    shape = batch, length, depth, 2, config.key_heads, config.head_width
    key_LBGSd, value_LBGSd = project(memory_BSD, kernel, bias).reshape(shape).transpose(3, 2, 0, 4, 1, 5)
    if config.qk_norm:
        norm: Callable[..., Any] = HeadNorm(epsilon=config.norm_epsilon, parent=None).apply
        key_LBGSd = jax.vmap(norm)({"params": params["k_norm"]}, key_LBGSd)
    return key_LBGSd, value_LBGSd
