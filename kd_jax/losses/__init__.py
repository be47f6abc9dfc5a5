"""Losses: pure functions from two arrays to one float per token."""

from kd_jax.losses.base import Range
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    taid,
    total_variation,
)
from kd_jax.losses.features import cosine, mse

__all__ = [
    "Range",
    "cosine",
    "cross_entropy",
    "forward_kl",
    "jensen_shannon",
    "mse",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "taid",
    "total_variation",
]
