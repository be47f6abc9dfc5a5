"""Divergences between the teacher's and the student's distribution on one support.

Both sides are log-probabilities [N, K] that sum to one over K (a signal's `align` makes them so, or says
which divergences bear that they do not). One value per token, float32, in nats. Where p = 0 or q = 0 the
limits are taken, 0 log 0 = 0, in the value and in the gradient; a divergence that is infinite there is
infinite in value.
"""

from typing import Annotated

import jax.numpy as jnp

from kd_jax.losses.base import Range
from kd_jax.types import Array

Beta = Annotated[float, Range(0.0, 1.0)]
Alpha = Annotated[float, Range(0.0, 0.99)]
FARTHEST = 80.0  # log ratios beyond it are cut: exp stays in float32, and what is cut weighs less than e^-80


def _weighted_difference(weight_logp_NK: Array, a_logp_NK: Array, b_logp_NK: Array) -> Array:
    """sum_k w_k (a_k - b_k) of log-probabilities; terms with w_k = 0 are 0, whatever a and b are."""
    possible_NK = weight_logp_NK > -jnp.inf
    weight, a, b = (jnp.where(possible_NK, x, 0.0).astype(jnp.float32) for x in (weight_logp_NK, a_logp_NK, b_logp_NK))
    return (jnp.where(possible_NK, jnp.exp(weight), 0.0) * (a - b)).sum(-1)


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

    Examples:
      >>> p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
      >>> print(f"{forward_kl(p, q)[0]:.4f}")  # 0.9 log 1.8 + 0.1 log 0.2
      0.3681
    """
    return _weighted_difference(teacher_logp_NK, teacher_logp_NK, student_logp_NK)


def reverse_kl(teacher_logp_NK: Array, student_logp_NK: Array) -> Array:
    """Kullback-Leibler divergence of the teacher from the student: seeks modes.

    .. math:: KL(q \\| p) = \\sum_k q_k (\\log q_k - \\log p_k)

    Args, returns: as `forward_kl`; infinite where p = 0 and q > 0.

    References:
      Gu et al. 2023, arXiv 2306.08543 (MiniLLM), eq. 1.

    Examples:
      >>> p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
      >>> print(f"{reverse_kl(p, q)[0]:.4f}")  # 0.5 log(5 / 9) + 0.5 log 5
      0.5108
    """
    return _weighted_difference(student_logp_NK, student_logp_NK, teacher_logp_NK)


def _log_over_mixture(a_logp_NK: Array, b_logp_NK: Array, a_share: float, b_share: float) -> Array:
    """log(a / (a_share a + b_share b)), shares that add up to one; 0 where a and b both are 0.

    From the log ratio d of a and b, not from two logarithms: where a share is small the difference of these
    would be their rounding.
    """
    impossible_NK = (a_logp_NK == -jnp.inf) & (b_logp_NK == -jnp.inf)
    a, b = (jnp.where(impossible_NK, 0.0, x).astype(jnp.float32) for x in (a_logp_NK, b_logp_NK))
    d_NK = jnp.clip(a - b, -FARTHEST, FARTHEST)
    if a_share <= b_share:
        return d_NK - jnp.log1p(a_share * jnp.expm1(d_NK))
    return -jnp.log1p(b_share * jnp.expm1(-d_NK))


def jensen_shannon(teacher_logp_NK: Array, student_logp_NK: Array, beta: Beta = 0.5) -> Array:
    """Generalised Jensen-Shannon divergence.

    .. math:: \\beta KL(p \\| m) + (1 - \\beta) KL(q \\| m), \\quad m = \\beta p + (1 - \\beta) q

    Its ends are taken as the limits of JS / (beta (1 - beta)) in direction: beta = 0 is forward KL,
    beta = 1 is reverse KL, as GKD defines them; beta = 1/2 is the Jensen-Shannon divergence, at most log 2.

    Args:
      teacher_logp_NK, student_logp_NK: as `forward_kl`.
      beta: in [0, 1].

    Returns:
      float32 [N].

    References:
      Agarwal et al. 2023, arXiv 2306.13649 (GKD), eq. 1.

    Examples:
      >>> p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
      >>> print(f"{jensen_shannon(p, q)[0]:.4f}")  # m = (0.7, 0.3)
      0.1017
    """
    if beta == 0.0:
        return forward_kl(teacher_logp_NK, student_logp_NK)
    if beta == 1.0:
        return reverse_kl(teacher_logp_NK, student_logp_NK)
    p_NK, q_NK = (jnp.exp(x.astype(jnp.float32)) for x in (teacher_logp_NK, student_logp_NK))
    teacher_NK = p_NK * _log_over_mixture(teacher_logp_NK, student_logp_NK, beta, 1 - beta)
    student_NK = q_NK * _log_over_mixture(student_logp_NK, teacher_logp_NK, 1 - beta, beta)
    # Added token by token, where they cancel to what is never negative.
    return (beta * teacher_NK + (1 - beta) * student_NK).sum(-1)


def skewed_forward_kl(teacher_logp_NK: Array, student_logp_NK: Array, alpha: Alpha = 0.1) -> Array:
    """KL of a mixture from the teacher, bounded by -log alpha.

    .. math:: KL(p \\| \\alpha p + (1 - \\alpha) q)

    Args:
      teacher_logp_NK, student_logp_NK: as `forward_kl`.
      alpha: the teacher's share in the mixture, in [0, 0.99]; 0 is forward KL.

    Returns:
      float32 [N].

    References:
      Ko et al. 2024, arXiv 2402.03898 (DistiLLM), eq. 4.

    Examples:
      >>> p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
      >>> print(f"{skewed_forward_kl(p, q, alpha=0.5)[0]:.4f}")  # 0.9 log(9 / 7) + 0.1 log(1 / 3)
      0.1163
    """
    if alpha == 0.0:
        return forward_kl(teacher_logp_NK, student_logp_NK)
    p_NK = jnp.exp(teacher_logp_NK.astype(jnp.float32))
    return (p_NK * _log_over_mixture(teacher_logp_NK, student_logp_NK, alpha, 1 - alpha)).sum(-1)


def skewed_reverse_kl(teacher_logp_NK: Array, student_logp_NK: Array, alpha: Alpha = 0.1) -> Array:
    """KL of a mixture from the student, bounded by -log alpha: finite where the teacher says 0.

    .. math:: KL(q \\| \\alpha q + (1 - \\alpha) p)

    Args:
      teacher_logp_NK, student_logp_NK: as `forward_kl`.
      alpha: the student's share in the mixture, in [0, 0.99]; 0 is reverse KL.

    Returns:
      float32 [N].

    References:
      Ko et al. 2024, arXiv 2402.03898 (DistiLLM), section 3.1.

    Examples:
      >>> p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
      >>> print(f"{skewed_reverse_kl(p, q, alpha=0.5)[0]:.4f}")  # 0.5 log(5 / 7) + 0.5 log(5 / 3)
      0.0872
    """
    if alpha == 0.0:
        return reverse_kl(teacher_logp_NK, student_logp_NK)
    q_NK = jnp.exp(student_logp_NK.astype(jnp.float32))
    return (q_NK * _log_over_mixture(student_logp_NK, teacher_logp_NK, alpha, 1 - alpha)).sum(-1)


def total_variation(teacher_logp_NK: Array, student_logp_NK: Array) -> Array:
    """Total variation distance, in [0, 1].

    .. math:: \\frac{1}{2} \\sum_k |p_k - q_k|

    1 minus it is the rate at which speculative decoding accepts the student's tokens (arXiv 2211.17192).

    Args:
      teacher_logp_NK, student_logp_NK: as `forward_kl`.

    Returns:
      float32 [N].

    References:
      Wen et al. 2023, arXiv 2307.15190 (f-distill), section 3.

    Examples:
      >>> p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
      >>> print(f"{total_variation(p, q)[0]:.4f}")  # (0.4 + 0.4) / 2
      0.4000
    """
    p_NK, q_NK = (jnp.exp(x.astype(jnp.float32)) for x in (teacher_logp_NK, student_logp_NK))
    return 0.5 * jnp.abs(p_NK - q_NK).sum(-1)


ALL = (forward_kl, reverse_kl, jensen_shannon, skewed_forward_kl, skewed_reverse_kl, total_variation)
# Sums weighted by the teacher's probabilities alone: tokens that the teacher's side leaves out add nothing.
TEACHER_WEIGHTED = (forward_kl, skewed_forward_kl)
