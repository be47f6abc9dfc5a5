"""Attention: who sees whom, and the layers that look. In names, G is the heads of keys and values, d a head's width."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.layers import KERNEL_INIT, Dense, HeadNorm, project
from kd_jax.models.positions import apply_rotary
from kd_jax.models.transformer import Transformer
from kd_jax.types import Array, Params

MASKED = -1e9

# Causal attention in at most so many blocks of queries, none of them smaller.
BLOCKS, SMALLEST_BLOCK = 4, 64

KeyValue = tuple[Array, Array]


class AttentionContext(NamedTuple):
    """What all layers of a stack share: who sees whom, from where.

    Attributes:
      self_bias: float [B or 1, H or 1, T, S].
      rotary, local_rotary: (cosine, sine) of the positions' angles; those that local layers have in their place. None
        where positions are not rotary, or no layer is local.
      causal: whether queries and keys are of the same tokens, and none sees one behind it; the bias says so too.
      cross_bias: float [B, 1, T or 1, S]; None where there is no source.
    """

    self_bias: Array
    rotary: tuple[Array, Array] | None
    local_rotary: tuple[Array, Array] | None = None
    causal: bool = False
    cross_bias: Array | None = None


def mask_bias(mask: Array) -> Array:
    """0 where true, a large negative number elsewhere."""
    return jnp.where(mask, 0.0, MASKED)


def same_segment(query_BT: Array, key_BS: Array) -> Array:
    """Whether query and key belong to one example (padding to padding): bool [B, 1, T, S]."""
    return (query_BT[:, :, None] == key_BS[:, None, :])[:, None]


def split_heads(x_BTD: Array, heads: int) -> Array:
    """[B, T, D] to [B, H, T, D/H]."""
    batch, length, width = x_BTD.shape
    return x_BTD.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def attend(
    q_BHTd: Array, k_BGSd: Array, v_BGSd: Array, bias: Array, scale: float = 0.0, soft_cap: float = 0.0
) -> Array:
    """softmax(cap(scale q k') + bias) v per head, heads side by side again; the softmax in float32.

    Queries of the heads that share keys stand below each other, so that no key is repeated. Batch and heads stay two
    axes: flattened into one, XLA on CPU copies the whole decoding cache three times a step.

    Args:
      q_BHTd: queries.
      k_BGSd, v_BGSd: keys and values; query head h reads head h // (H / G) of them.
      bias: [B or 1, H or 1, T or 1, S].
      scale: 0 for 1 / sqrt(d).
      soft_cap: bound of the scores, by tanh; 0 for none.

    Returns:
      [B, T, H d].

    Examples:
      >>> q, kv = jnp.zeros((1, 2, 1, 3)), jnp.arange(6.0).reshape(1, 1, 2, 3)
      >>> print(attend(q, kv, kv, jnp.zeros((1, 1, 1, 2))))  # two heads share keys, and weigh both alike
      [[[1.5 2.5 3.5 1.5 2.5 3.5]]]
    """
    batch, heads, length, width = q_BHTd.shape
    groups = k_BGSd.shape[1]
    q_BGRd = q_BHTd.reshape(batch, groups, heads // groups * length, width)
    scores_BGRS = jnp.einsum("bgrd,bgsd->bgrs", q_BGRd, k_BGSd).astype(jnp.float32) * (scale or width**-0.5)
    if soft_cap:
        scores_BGRS = soft_cap * jnp.tanh(scores_BGRS / soft_cap)
    weights_BHTS = jax.nn.softmax(scores_BGRS.reshape(batch, heads, length, k_BGSd.shape[2]) + bias, axis=-1)
    weights_BGRS = weights_BHTS.reshape(scores_BGRS.shape).astype(v_BGSd.dtype)
    out_BGRd = jnp.einsum("bgrs,bgsd->bgrd", weights_BGRS, v_BGSd)
    return out_BGRd.reshape(q_BHTd.shape).swapaxes(1, 2).reshape(batch, length, heads * width)


def attend_causal(
    q_BHTd: Array, k_BGTd: Array, v_BGTd: Array, bias: Array, scale: float = 0.0, soft_cap: float = 0.0
) -> Array:
    """`attend` where no query sees a key behind it: blocks of queries, each with the keys up to its end.

    At 256 tokens the gradient takes less than half the time on CPU: three eighths of the products are left out, and
    what is left stays in the caches.
    """
    length, parts = q_BHTd.shape[2], []
    block = max(SMALLEST_BLOCK, -(-length // BLOCKS))
    for start in range(0, max(length, 1), block):
        end = min(start + block, length)
        k_BGSd, v_BGSd = k_BGTd[:, :, :end], v_BGTd[:, :, :end]
        bias_here = bias[:, :, start:end, :end]
        parts.append(attend(q_BHTd[:, :, start:end], k_BGSd, v_BGSd, bias_here, scale, soft_cap))
    return jnp.concatenate(parts, axis=1)


class SelfAttention(nn.Module):
    """Queries, keys and values from one product."""

    config: Transformer

    def setup(self):
        c = self.config
        self.qkv = Dense((c.heads + 2 * c.key_heads) * c.head_width, c.biases != "none")
        self.out = Dense(c.d_model, c.biases == "all")
        if c.qk_norm:
            self.q_norm, self.k_norm = (HeadNorm(epsilon=c.norm_epsilon) for _ in "qk")

    def __call__(
        self, x_BTD: Array, attention: AttentionContext, earlier: KeyValue | None = None, slot: Array | None = None
    ) -> tuple[Array, KeyValue]:
        """(what was seen [B, T, D], keys and values [B, G, S, d]).

        With keys and values of earlier tokens, those of this call enter among them at `slot`; without, they are all.
        """
        c = self.config
        q_BHTd, *kv = self.split(x_BTD)
        if c.qk_norm:
            q_BHTd, kv[0] = self.q_norm(q_BHTd), self.k_norm(kv[0])
        if attention.rotary is not None:
            q_BHTd, kv[0] = apply_rotary(q_BHTd, attention.rotary), apply_rotary(kv[0], attention.rotary)
        if earlier is not None:
            update = jax.lax.dynamic_update_slice_in_dim
            kv = [update(before, now, slot, 2) for before, now in zip(earlier, kv, strict=True)]
        look = attend_causal if attention.causal else attend
        seen_BTD = look(q_BHTd, *kv, attention.self_bias, c.attention_scale, c.attention_soft_cap)
        self.sow("taps", "heads", seen_BTD)
        return self.out(seen_BTD), tuple(kv)

    def split(self, x_BTD: Array) -> list[Array]:
        """Queries [B, H, T, d], keys and values [B, G, T, d]; tapped as they leave the product."""
        c = self.config
        heads = c.heads, c.key_heads, c.key_heads
        ends = [c.heads * c.head_width, (c.heads + c.key_heads) * c.head_width]
        parts = jnp.split(self.qkv(x_BTD), ends, axis=-1)
        for kind, part in zip("qkv", parts, strict=True):
            self.sow("taps", kind, part)
        return [split_heads(part, count) for part, count in zip(parts, heads, strict=True)]


class CrossAttention(nn.Module):
    """Queries from the decoder; keys and values of all layers are made at once, by `cross_kv`."""

    config: Transformer

    def setup(self):
        c = self.config
        width = c.key_heads * c.head_width
        self.q, self.out = Dense(c.heads * c.head_width, c.biases != "none"), Dense(c.d_model, c.biases == "all")
        self.kv = self.param("kv", KERNEL_INIT, (c.d_model, 2 * width))
        self.kv_bias = self.param("kv_bias", nn.initializers.zeros, (2 * width,)) if c.biases != "none" else None
        if c.qk_norm:
            self.q_norm, self.k_norm = (HeadNorm(epsilon=c.norm_epsilon) for _ in "qk")

    def __call__(self, x_BTD: Array, kv: KeyValue, bias: Array) -> Array:
        c = self.config
        q_BHTd = split_heads(self.q(x_BTD), c.heads)
        if c.qk_norm:
            q_BHTd = self.q_norm(q_BHTd)
        seen_BTD = attend(q_BHTd, *kv, bias, c.attention_scale, c.attention_soft_cap)
        self.sow("taps", "heads", seen_BTD)
        return self.out(seen_BTD)


def cross_kv(layers: list[CrossAttention], memory_BSD: Array) -> tuple[KeyValue, ...]:
    """Keys and values of every layer from one product; (key, value) pairs, each [B, G, S, d]."""
    c = layers[0].config
    kernel = jnp.concatenate([layer.kv for layer in layers], axis=1)
    bias = jnp.concatenate([layer.kv_bias for layer in layers]) if c.biases != "none" else None
    parts = jnp.split(project(memory_BSD, kernel, bias), 2 * len(layers), axis=-1)
    heads = [split_heads(part, c.key_heads) for part in parts]
    keys = [layer.k_norm(k) if c.qk_norm else k for layer, k in zip(layers, heads[::2], strict=True)]
    return tuple(zip(keys, heads[1::2], strict=True))


def scanned_cross_kv(config: Transformer, params: Params, memory_BSD: Array) -> KeyValue:
    """As `cross_kv`, of layers whose parameters lie stacked: keys and values [layers, B, G, S, d]."""
    batch, length, width = memory_BSD.shape
    depth = len(params["kv"])
    kernel = params["kv"].swapaxes(0, 1).reshape(width, -1)
    bias = params["kv_bias"].reshape(-1) if config.biases != "none" else None
    shape = batch, length, depth, 2, config.key_heads, config.head_width
    key_LBGSd, value_LBGSd = project(memory_BSD, kernel, bias).reshape(shape).transpose(3, 2, 0, 4, 1, 5)
    if config.qk_norm:
        norm = HeadNorm(epsilon=config.norm_epsilon, parent=None)
        normed = jax.vmap(lambda own, key_BGSd: norm.apply({"params": own}, key_BGSd))
        key_LBGSd = normed(params["k_norm"], key_LBGSd)
    return key_LBGSd, value_LBGSd
