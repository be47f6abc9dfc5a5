"""Divergences between the teacher's and the student's distribution on one support.

Both sides are log-probabilities [N, K] that sum to one over K (a signal's `align` makes them so).
0 log 0 counts as 0, in the value and in the gradient.
"""

import jax.numpy as jnp

from kd_jax.types import Array


def forward_kl(teacher_logp_NK: Array, student_logp_NK: Array) -> Array:
    """Kullback-Leibler divergence of the student from the teacher, in nats.

    .. math:: KL(p \\| q) = \\sum_k p_k (\\log p_k - \\log q_k)

    Args:
      teacher_logp_NK: float [N, K], log p; -inf where p = 0.
      student_logp_NK: float [N, K], log q; where p = 0 it may be -inf.

    Returns:
      float32 [N], not negative but for rounding.

    References:
      Hinton et al. 2015, arXiv 1503.02531 (there as cross-entropy with soft targets).
    """
    possible_NK = teacher_logp_NK > -jnp.inf
    log_p_NK = jnp.where(possible_NK, teacher_logp_NK, 0.0).astype(jnp.float32)
    log_q_NK = jnp.where(possible_NK, student_logp_NK, 0.0).astype(jnp.float32)
    p_NK = jnp.where(possible_NK, jnp.exp(log_p_NK), 0.0)
    return (p_NK * (log_p_NK - log_q_NK)).sum(-1)
