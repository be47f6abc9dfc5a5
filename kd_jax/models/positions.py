"""How a network knows where a token stands: sinusoids, rotations, relative buckets."""

import math
from typing import Any

import jax.numpy as jnp

from kd_jax.models.rope import Linear, Llama3
from kd_jax.types import Array

BUCKETS, FARTHEST = 32, 128  # T5's


def sinusoids(length: int, d_model: int, timing: bool = False, xp: Any = jnp) -> Array:
    """Position encodings, float32 [length, d_model]: sines first, then cosines.

    The rates fall from 1 to 1 / 10,000: short of it by one step, or, as tensor2tensor's timing signal, to it.

    Args:
      xp: whose arrays they are: jax.numpy, or numpy where no program is to be compiled.

    References:
      Vaswani et al. 2017, arXiv 1706.03762, section 3.5.

    Examples:
      >>> print(sinusoids(2, 4)[0])
      [0. 0. 1. 1.]
    """
    half = -(-d_model // 2)
    rates = 10_000.0 ** (-xp.arange(half, dtype=xp.float32) / (max(half - 1, 1) if timing else d_model / 2))
    angles = xp.arange(length, dtype=xp.float32)[:, None] * rates[None, :]
    return xp.concatenate([xp.sin(angles), xp.cos(angles)], axis=1)[:, :d_model]


def rotary_embedding(
    position_BT: Array, head_dim: int, theta: float, scaling: Linear | Llama3 | None = None
) -> tuple[Array, Array]:
    """(cosine, sine) of every position's angles, each float32 [B, 1, T, head_dim], for `apply_rotary`.

    Angle i of position t is t theta^(-2i / head_dim), slower where they are scaled. Both halves of a head have the
    same angles; the first half's sines are negative.

    References:
      Su et al. 2021, arXiv 2104.09864, section 3.2.

    Examples:
      >>> cosine, sine = rotary_embedding(jnp.array([[0, 1]]), head_dim=2, theta=10_000.0)
      >>> cosine.shape, bool(jnp.allclose(sine[0, 0, 1], jnp.sin(jnp.array([-1.0, 1.0]))))
      ((1, 1, 2, 2), True)
    """
    rates = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        rates = scaling.slow(rates)
    angles = position_BT[:, None, :, None].astype(jnp.float32) * rates[None, None, None]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cosine, cosine], axis=-1), jnp.concatenate([-sine, sine], axis=-1)


def apply_rotary(x_BHTd: Array, rotary: tuple[Array, Array]) -> Array:
    """Turns the pairs (i, i + d/2) of each head by their position's angles, as transformers' Llama does.

    So q k' depends on the distance of query and key alone. The halves are exchanged by a flip: on CPU a concatenation
    makes the step a tenth slower.

    Examples:
      >>> quarter = rotary_embedding(jnp.full((1, 1), jnp.pi / 2), head_dim=2, theta=10_000.0)
      >>> print(apply_rotary(jnp.array([[[[1.0, 2.0]]]]), quarter).ravel().round(5))
      [-2.  1.]
    """
    cosine, sine = rotary
    wide_BHTd = x_BHTd.astype(jnp.float32)
    halves = wide_BHTd.reshape(*x_BHTd.shape[:-1], 2, x_BHTd.shape[-1] // 2)
    return (wide_BHTd * cosine + jnp.flip(halves, axis=-2).reshape(x_BHTd.shape) * sine).astype(x_BHTd.dtype)


def relative_buckets(distance: Array, two_sided: bool) -> Array:
    """The bucket of each distance (key's position less the query's), int32 from 0 to BUCKETS - 1.

    Half of a side's buckets hold one distance each, the others ranges that grow by a constant factor up to FARTHEST,
    and the last one all beyond. Two-sided: the upper half of the buckets is for keys behind the query. One-sided: those
    keys share bucket 0, and are masked.

    References:
      Raffel et al. 2019, arXiv 1910.10683, section 2.1.

    Examples:
      >>> distances = jnp.array([-1000, -128, -9, -1, 0, 1, 9])
      >>> relative_buckets(distances, two_sided=True).tolist()
      [15, 15, 8, 1, 0, 17, 24]
      >>> relative_buckets(distances, two_sided=False).tolist()
      [31, 31, 9, 1, 0, 0, 0]
    """
    side = BUCKETS // 2 if two_sided else BUCKETS
    exact = side // 2
    growth = (FARTHEST / exact) ** (1 / (side - exact))
    # The nearest distance of every bucket but the first; less a little, for powers that are whole numbers.
    nearest = [*range(1, exact), *(math.ceil(exact * growth**i - 1e-6) for i in range(side - exact))]
    away = jnp.abs(distance) if two_sided else jnp.maximum(-distance, 0)
    bucket = jnp.searchsorted(jnp.array(nearest, distance.dtype), away, side="right", method="compare_all")
    return bucket + jnp.where(two_sided & (distance > 0), side, 0)
