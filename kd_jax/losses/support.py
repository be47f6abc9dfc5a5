"""Student logits on a signal's support: one pass over the vocabulary each way.

The pass over [N, V] is what a divergence costs beside cross-entropy. So the exponentials are taken once,
for the log-sum-exp of what the support leaves out and for the normaliser that cross-entropy needs too,
and the gradient is written by hand: what is left out shares one factor, the support is scattered in.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.types import Array


class Aligned(NamedTuple):
    """Both distributions on one support.

    Attributes:
      teacher_logp_NK, student_logp_NK: float32 [N, K].
      log_z_N: log-sum-exp of the student's logits over the temperature, where it came for nothing; else None.
    """

    teacher_logp_NK: Array
    student_logp_NK: Array
    log_z_N: Array | None = None


@jax.custom_vjp
def split(logits_NV: Array, ids_NK: Array) -> tuple[Array, Array]:
    """The logits at the ids, [N, K], and the log-sum-exp of all others, [N]; -inf where there are none.

    Nothing is lost to cancellation, as it would be in 1 - sum(p). The ids of a row differ from each other.
    """
    return _split_forward(logits_NV, ids_NK)[0]


def _split_forward(logits_NV, ids_NK):
    most_N1 = logits_NV.max(-1, keepdims=True)
    others_NV = jnp.put_along_axis(jnp.exp(logits_NV - most_N1), ids_NK, 0.0, axis=-1, inplace=False)
    sum_N = others_NV.sum(-1)
    found = jnp.take_along_axis(logits_NV, ids_NK, -1), jnp.log(sum_N) + most_N1[:, 0]
    return found, (others_NV, sum_N, ids_NK)


def _split_backward(saved, cotangents):
    others_NV, sum_N, ids_NK = saved
    d_found_NK, d_rest_N = cotangents
    share_N = jnp.where(sum_N > 0, d_rest_N / jnp.where(sum_N > 0, sum_N, 1.0), 0.0)
    return jnp.put_along_axis(others_NV * share_N[:, None], ids_NK, d_found_NK, axis=-1, inplace=False), None


split.defvjp(_split_forward, _split_backward)


def with_rest(logits_NV: Array, ids_NK: Array) -> tuple[Array, Array]:
    """(log-probabilities at the ids and, last, of all other tokens together [N, K + 1], log Z [N])."""
    found_NK, rest_N = split(logits_NV, ids_NK)
    logits_NX = jnp.concatenate([found_NK, rest_N[:, None]], axis=-1)
    log_z_N = jax.nn.logsumexp(logits_NX, axis=-1)
    return logits_NX - log_z_N[:, None], log_z_N


def at(logits_NV: Array, ids_NK: Array) -> tuple[Array, Array]:
    """(log-probabilities at the ids [N, K], log Z [N])."""
    log_z_N = jax.nn.logsumexp(logits_NV, axis=-1)
    return jnp.take_along_axis(logits_NV, ids_NK, -1) - log_z_N[:, None], log_z_N


def id_dtype(vocab_size: int) -> str:
    """The smallest unsigned dtype that holds every token's id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"
