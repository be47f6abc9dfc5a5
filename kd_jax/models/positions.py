"""Positions: sinusoids, rotary embeddings, relative buckets."""

import math
from types import ModuleType
from typing import NamedTuple

import jax.numpy as jnp

from kd_jax.models.rope import RopeScaling, Yarn
from kd_jax.runtime.target import is_for_cpu
from kd_jax.types import Array

BUCKETS, MAX_DISTANCE = 32, 128  # as in T5


def sinusoids(length: int, d_model: int, timing: bool = False, xp: ModuleType = jnp) -> Array:
    """Return sinusoidal position encodings, float32 [length, d_model]: sines first, then cosines.

    With `timing` the rates fall from 1 to exactly 1 / 10,000, as in tensor2tensor; otherwise they end one step earlier.
    `xp` is jax.numpy, or numpy to compute on the host without compilation.

    References:
      Vaswani et al. 2017, arXiv 1706.03762, section 3.5.
    """
    half = -(-d_model // 2)
    rates = 10_000.0 ** (-xp.arange(half, dtype=xp.float32) / (max(half - 1, 1) if timing else d_model / 2))
    angles = xp.arange(length, dtype=xp.float32)[:, None] * rates[None, :]
    return xp.concatenate([xp.sin(angles), xp.cos(angles)], axis=1)[:, :d_model]


class Rotary(NamedTuple):
    """Rotary embedding of positions, for `apply_rotary`.

    Both halves of a head have the same angles; the sines of the first half are negated. r is the number of rotated
    channels of a head.

    Attributes:
      cosine: float32 [B, 1, T, r], cosines of the angles.
      sine: float32 [B, 1, T, r], signed sines of the angles.
    """

    cosine: Array
    sine: Array


def rotary_embedding(position_BT: Array, width: int, theta: float, scaling: RopeScaling | None = None) -> Rotary:
    """Return the rotary embedding of positions, for `width` channels of each head.

    Angle i of position t is t theta^(-2i / width).

    References:
      Su et al. 2021, arXiv 2104.09864, section 3.2.
    """
    rates = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling is not None:
        rates = scaling.scale(rates, theta)
    angles = position_BT[:, None, :, None].astype(jnp.float32) * rates[None, None, None]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    if isinstance(scaling, Yarn):
        cosine, sine = scaling.cosine_factor * cosine, scaling.cosine_factor * sine
    return Rotary(jnp.concatenate([cosine, cosine], axis=-1), jnp.concatenate([-sine, sine], axis=-1))


def apply_rotary(x_BHTd: Array, rotary: Rotary) -> Array:
    """Return queries or keys with each pair (i, i + d/2) rotated by its position's angle, as in transformers' Llama.

    Scores of rotated queries and keys depend on their distance alone. If the embedding is narrower than a head, the
    other channels stay as they are.
    """
    width = rotary.cosine.shape[-1]
    if width < x_BHTd.shape[-1]:
        return jnp.concatenate([apply_rotary(x_BHTd[..., :width], rotary), x_BHTd[..., width:]], axis=-1)
    float_BHTd = x_BHTd.astype(jnp.float32)
    halves_BHT2h = float_BHTd.reshape(*x_BHTd.shape[:-1], 2, x_BHTd.shape[-1] // 2)
    rotated_BHTd = float_BHTd * rotary.cosine + swap_halves(halves_BHT2h).reshape(x_BHTd.shape) * rotary.sine
    return rotated_BHTd.astype(x_BHTd.dtype)


def swap_halves(halves_BHT2h: Array) -> Array:
    """Return the two halves of each head, [B, H, T, 2, d / 2], exchanged."""
    if is_for_cpu():  # where a concatenation of the halves made the training step a tenth slower
        return jnp.flip(halves_BHT2h, axis=-2)
    first, second = jnp.split(halves_BHT2h, 2, axis=-2)
    return jnp.concatenate([second, first], axis=-2)


def relative_buckets(distance: Array, two_sided: bool) -> Array:
    """Return the bucket of each distance, int32 from 0 to BUCKETS - 1.

    Half of a side's buckets hold one distance each. The others hold ranges that grow by a constant factor up to
    MAX_DISTANCE; the last one also holds all larger distances.

    Args:
      distance: position of the key minus position of the query.
      two_sided: whether the upper half of the buckets is for keys after the query. Otherwise these keys are masked, and
        share bucket 0.

    References:
      Raffel et al. 2019, arXiv 1910.10683, section 2.1.
    """
    side = BUCKETS // 2 if two_sided else BUCKETS
    exact = side // 2
    growth = (MAX_DISTANCE / exact) ** (1 / (side - exact))
    # The smallest distance of every bucket but the first. 1e-6 is subtracted because some powers are integers.
    smallest = [*range(1, exact), *(math.ceil(exact * growth**i - 1e-6) for i in range(side - exact))]
    size = jnp.abs(distance) if two_sided else jnp.maximum(-distance, 0)
    bucket = jnp.searchsorted(jnp.array(smallest, distance.dtype), size, side="right", method="compare_all")
    return bucket + jnp.where(two_sided & (distance > 0), side, 0)
