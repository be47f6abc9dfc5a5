"""Measures of a student beside its teacher, as Sums on the device."""

import jax
import jax.numpy as jnp

from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.types import Array, Sum


def total(values_N: Array, mask_N: Array) -> Sum:
    """The sum over masked-in tokens, and their number (int32: exact to 2^31)."""
    return Sum(jnp.where(mask_N, values_N, 0.0).sum(dtype=jnp.float32), mask_N.sum(dtype=jnp.int32))


def likeliest(logits_NV: Array) -> Array:
    """The first id of the largest logit, int32 [N]; on CPU 7 times as fast as XLA's argmax."""
    largest_NV = logits_NV == logits_NV.max(-1, keepdims=True)
    ids_NV = jax.lax.broadcasted_iota(jnp.int32, logits_NV.shape, 1)
    return jnp.where(largest_NV, ids_NV, logits_NV.shape[-1]).min(-1)


def compare(teacher_logits_NV: Array, student_logits_NV: Array, targets_N: Array, mask_N: Array) -> dict[str, Sum]:
    """Cross-entropy of the student, KL(teacher || student) in nats, and share of equal likeliest tokens.

    Args:
      teacher_logits_NV, student_logits_NV: float [N, V].
      targets_N: int [N].
      mask_N: bool [N], tokens that count.

    Returns:
      {"cross_entropy", "kl_to_teacher", "agreement"}.
    """
    logp = [jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (teacher_logits_NV, student_logits_NV)]
    agree_N = likeliest(teacher_logits_NV) == likeliest(student_logits_NV)
    return {
        "cross_entropy": total(cross_entropy(student_logits_NV, targets_N), mask_N),
        "kl_to_teacher": total(forward_kl(*logp), mask_N),
        "agreement": total(agree_N.astype(jnp.float32), mask_N),
    }
