"""Cross-entropy with the targets of the data."""

from typing import Annotated

import jax
import jax.numpy as jnp

from kd_jax.losses.base import Range
from kd_jax.types import Array


def cross_entropy(
    logits_NV: Array,
    targets_N: Array,
    label_smoothing: Annotated[float, Range(0.0, 0.99)] = 0.0,
    log_z_N: Array | None = None,
) -> Array:
    r"""Compute the cross-entropy of each token with its smoothed target, in nats.

    .. math:: -\sum_v \left((1 - \epsilon) [v = y] + \epsilon / V\right) \log p_v

    Args:
      logits_NV: float [N, V]; columns that pad the vocabulary hold -inf and are not smoothed over.
      targets_N: int [N], y.
      label_smoothing: epsilon, in [0, 0.99].
      log_z_N: float32 [N], the log-sum-exp of the logits if it is known; None to compute it.

    Returns:
      float32 [N].

    References:
      Szegedy et al. 2016, arXiv 1512.00567, section 7 (smoothing towards the uniform distribution).

    Examples:
      >>> logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.25]]))
      >>> print(f"{cross_entropy(logits, jnp.asarray([0]))[0]:.4f}")  # log 2
      0.6931
    """
    logits_NV = logits_NV.astype(jnp.float32)
    if label_smoothing == 0.0 and log_z_N is None:
        return _unsmoothed(logits_NV, targets_N)
    log_z_N = jax.nn.logsumexp(logits_NV, axis=-1) if log_z_N is None else log_z_N
    target_N = jnp.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0]
    if label_smoothing == 0.0:
        return log_z_N - target_N
    real_NV = logits_NV > -jnp.inf
    mean_N = jnp.where(real_NV, logits_NV, 0.0).sum(-1) / real_NV.sum(-1, dtype=jnp.float32)
    return log_z_N - (1 - label_smoothing) * target_N - label_smoothing * mean_N


@jax.custom_vjp
def _unsmoothed(logits_NV: Array, targets_N: Array) -> Array:
    """Return log Z minus the target's logit.

    The gradient is one pass, exp(logits) / Z - [v = y]. JAX's own scatters the targets into zeros and adds them. With
    label smoothing JAX's own is faster.
    """
    return _forward(logits_NV, targets_N)[0]


def _forward(logits_NV, targets_N):
    max_N1 = logits_NV.max(-1, keepdims=True)
    exp_NV = jnp.exp(logits_NV - max_N1)
    sum_N = exp_NV.sum(-1)
    target_N = jnp.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0]
    return jnp.log(sum_N) + max_N1[:, 0] - target_N, (exp_NV, sum_N, targets_N)


def _backward(residuals, d_loss_N):
    exp_NV, sum_N, targets_N = residuals
    is_target_NV = jax.lax.broadcasted_iota(jnp.int32, exp_NV.shape, 1) == targets_N[:, None]
    return exp_NV * (d_loss_N / sum_N)[:, None] - jnp.where(is_target_NV, d_loss_N[:, None], 0.0), None


_unsmoothed.defvjp(_forward, _backward)
