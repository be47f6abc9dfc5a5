"""Divergences between the teacher's and the student's distribution on one support.

Both arguments are log-probabilities [N, K]. They sum to one over K, unless the signal allows less (see its `supports`).
The result is one float32 value per token, in nats. A zero probability takes the limit 0 log 0 = 0, in the value and in
the gradient. A divergence that is infinite there returns inf.
"""

import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp

from kd_jax.losses.base import Range
from kd_jax.types import Array

Beta = Annotated[float, Range(0.0, 1.0)]
Alpha = Annotated[float, Range(0.0, 0.99)]
TeacherShare = Annotated[float | Array, Range(0.0, 1.0, scheduled=True)]
MAX_LOG_RATIO = 80.0  # larger ratios are clipped: exp stays within float32, and the error is below e^-80


def _weighted_difference(weight_logp_NK: Array, a_logp_NK: Array, b_logp_NK: Array) -> Array:
    """Return sum_k w_k (a_k - b_k) of log-probabilities; a summand with w_k = 0 is 0."""
    possible_NK = weight_logp_NK > -jnp.inf
    weight, a, b = (jnp.where(possible_NK, x, 0.0).astype(jnp.float32) for x in (weight_logp_NK, a_logp_NK, b_logp_NK))
    return (jnp.where(possible_NK, jnp.exp(weight), 0.0) * (a - b)).sum(-1)


def forward_kl(teacher_logp_NK: Array, student_logp_NK: Array) -> Array:
    r"""Compute the forward Kullback-Leibler divergence, KL(teacher || student).

    .. math:: KL(p \| q) = \sum_k p_k (\log p_k - \log q_k)

    Args:
      teacher_logp_NK: float [N, K], log p; -inf where p = 0.
      student_logp_NK: float [N, K], log q; -inf where q = 0.

    Returns:
      float32 [N], in nats; not negative except for rounding. inf if q = 0 < p.

    References:
      Hinton et al. 2015, arXiv 1503.02531 (there as cross-entropy with soft targets).

    Examples:
      >>> p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
      >>> print(f"{forward_kl(p, q)[0]:.4f}")  # 0.9 log 1.8 + 0.1 log 0.2
      0.3681
    """
    return _weighted_difference(teacher_logp_NK, teacher_logp_NK, student_logp_NK)


def reverse_kl(teacher_logp_NK: Array, student_logp_NK: Array) -> Array:
    r"""Compute the reverse Kullback-Leibler divergence, KL(student || teacher).

    .. math:: KL(q \| p) = \sum_k q_k (\log q_k - \log p_k)

    It seeks modes: the student may ignore tokens that the teacher finds likely.

    Args:
      teacher_logp_NK: float [N, K], log p; -inf where p = 0.
      student_logp_NK: float [N, K], log q; -inf where q = 0.

    Returns:
      float32 [N], in nats; inf if p = 0 < q.

    References:
      Gu et al. 2023, arXiv 2306.08543 (MiniLLM), eq. 1.

    Examples:
      >>> p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
      >>> print(f"{reverse_kl(p, q)[0]:.4f}")  # 0.5 log(5 / 9) + 0.5 log 5
      0.5108
    """
    return _weighted_difference(student_logp_NK, student_logp_NK, teacher_logp_NK)


def _log_over_mixture(a_logp_NK: Array, b_logp_NK: Array, a_share: float, b_share: float) -> Array:
    """Return log(a / (a_share a + b_share b)) for shares that sum to one; 0 where a and b are 0.

    It is computed from the log ratio of a and b: with a small share, the difference of two logarithms is rounding.
    """
    impossible_NK = (a_logp_NK == -jnp.inf) & (b_logp_NK == -jnp.inf)
    a, b = (jnp.where(impossible_NK, 0.0, x).astype(jnp.float32) for x in (a_logp_NK, b_logp_NK))
    return _log_over_mixture_at(jnp.clip(a - b, -MAX_LOG_RATIO, MAX_LOG_RATIO), a_share, b_share)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _log_over_mixture_at(d_NK: Array, a_share: float, b_share: float) -> Array:
    """Return log(a / (a_share a + b_share b)) = -log(a_share + b_share e^-d) for the log ratio d = log a - log b."""
    if a_share > b_share:
        return -jnp.log1p(b_share * jnp.expm1(-d_NK))
    # d - log1p(...) tends to -log a_share, and would cancel to the rounding of d where a dominates the mixture.
    equal = math.log(b_share / a_share)  # d where both parts of the mixture are equal
    a_dominates_NK = d_NK > max(equal, 1.0)
    summand_NK = jnp.where(a_dominates_NK, jnp.exp(equal - d_NK), a_share * jnp.expm1(d_NK))
    return jnp.where(a_dominates_NK, -math.log(a_share), d_NK) - jnp.log1p(summand_NK)


@_log_over_mixture_at.defjvp
def _log_over_mixture_jvp(a_share, b_share, primals, tangents):
    # The slope is b's part of the mixture. JAX's own derivative multiplies the gradient by e^-d and then by e^d: for a
    # large d it is denormal in between, and flushed to 0.
    (d_NK,), (d_dot_NK,) = primals, tangents
    slope_NK = jax.nn.sigmoid(math.log(b_share / a_share) - d_NK)
    return _log_over_mixture_at(d_NK, a_share, b_share), slope_NK * d_dot_NK


def jensen_shannon(teacher_logp_NK: Array, student_logp_NK: Array, beta: Beta = 0.5) -> Array:
    r"""Compute the generalised Jensen-Shannon divergence.

    .. math:: \beta KL(p \| m) + (1 - \beta) KL(q \| m), \quad m = \beta p + (1 - \beta) q

    beta = 1/2 is the Jensen-Shannon divergence, at most log 2. At its ends it is defined as in GKD by the limits of
    JS / (beta (1 - beta)): forward KL at beta = 0, reverse KL at beta = 1.

    Args:
      teacher_logp_NK: float [N, K], log p; -inf where p = 0.
      student_logp_NK: float [N, K], log q; -inf where q = 0.
      beta: the teacher's share in the mixture m, in [0, 1].

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
    # The two sums are added token by token: there they cancel to a value that is never negative.
    return (beta * teacher_NK + (1 - beta) * student_NK).sum(-1)


def skewed_forward_kl(teacher_logp_NK: Array, student_logp_NK: Array, alpha: Alpha = 0.1) -> Array:
    r"""Compute KL(teacher || mixture of both), at most -log alpha.

    .. math:: KL(p \| \alpha p + (1 - \alpha) q)

    Args:
      teacher_logp_NK: float [N, K], log p; -inf where p = 0.
      student_logp_NK: float [N, K], log q; -inf where q = 0.
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
    r"""Compute KL(student || mixture of both), at most -log alpha.

    .. math:: KL(q \| \alpha q + (1 - \alpha) p)

    Args:
      teacher_logp_NK: float [N, K], log p; -inf where p = 0.
      student_logp_NK: float [N, K], log q; -inf where q = 0.
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
    r"""Compute the total variation distance, in [0, 1].

    .. math:: \frac{1}{2} \sum_k |p_k - q_k|

    Speculative decoding accepts the student's tokens at the rate 1 - TV (arXiv 2211.17192).

    Args:
      teacher_logp_NK: float [N, K], log p; -inf where p = 0.
      student_logp_NK: float [N, K], log q; -inf where q = 0.

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


def taid(teacher_logp_NK: Array, student_logp_NK: Array, t: TeacherShare = 1.0) -> Array:
    r"""Compute KL(intermediate teacher || student); the intermediate teacher moves from the student to the teacher.

    .. math:: KL(p_t \| q), \quad p_t(k) = \frac{\bar q_k^{1 - t} p_k^t}{\sum_j \bar q_j^{1 - t} p_j^t}

    where the bar stops the gradient. Up to a constant a log-probability is a logit, so on the whole vocabulary p_t is
    the softmax of (1 - t) student logits + t teacher logits, as in the paper. With a support of k tokens and a rest,
    the rest is interpolated as one token.

    Set t to a Schedule from a start below 1 to 1 over the run, for example
    ``options={"t": Schedule(0.4, 1.0, steps=1000)}``. The paper also adapts the pace of t to the change of the loss;
    that needs a state which a training step does not have, so t follows the schedule alone.

    Args:
      teacher_logp_NK: float [N, K], log p; -inf where p = 0.
      student_logp_NK: float [N, K], log q; -inf where q = 0. Both must have a token of positive probability in common.
      t: the teacher's share in the logits of the target, in [0, 1]: a number, or a Schedule in `Term.options`. 1 is
        forward KL; at 0 the loss and its gradient are 0.

    Returns:
      float32 [N]; inf if t = 1 and q = 0 < p.

    References:
      Shing et al. 2025, arXiv 2501.16937 (TAID), section 3.

    Examples:
      >>> p, q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
      >>> print(f"{taid(p, q, t=0.5)[0]:.4f}")  # p_t = (3, 1) / 4: 0.75 log 1.5 + 0.25 log 0.5
      0.1308
    """
    target_NK = jax.nn.log_softmax(_scaled(1 - t, student_logp_NK) + _scaled(t, teacher_logp_NK))
    target_NK = jax.lax.stop_gradient(target_NK)
    return _weighted_difference(target_NK, target_NK, student_logp_NK)


def _scaled(factor: float | Array, logp_NK: Array) -> Array:
    """Return factor * log-probabilities, float32; 0 for the factor 0, also where a probability is 0."""
    return jnp.where(factor == 0, 0.0, factor * logp_NK.astype(jnp.float32))


ALL = (forward_kl, reverse_kl, jensen_shannon, skewed_forward_kl, skewed_reverse_kl, total_variation, taid)
# Sums weighted by the teacher's probabilities alone: tokens outside the teacher's support add nothing.
TEACHER_WEIGHTED = (forward_kl, skewed_forward_kl)
