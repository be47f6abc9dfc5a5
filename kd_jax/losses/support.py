"""Log-probabilities on a support: at some ids and, optionally, of all other tokens together.

The pass over the logits [N, V] dominates the cost of a divergence. It is made once, for the log-sum-exp outside the
support and for the normaliser, which cross-entropy uses too.
"""

import jax
import jax.numpy as jnp

from kd_jax.types import Array


def logits_at(logits_NV: Array, ids_NK: Array) -> Array:
    """Return the logits [N, K] at the ids; -inf if an id is V or more."""
    return jnp.take_along_axis(logits_NV, ids_NK, axis=-1, mode="fill", fill_value=-jnp.inf)


def logp_at(logits_NV: Array, ids_NK: Array) -> tuple[Array, Array]:
    """Return the log-probabilities [N, K] at the ids (-inf for V or more), and the log-sum-exp [N] of the logits."""
    log_z_N = jax.nn.logsumexp(logits_NV, axis=-1)
    return logits_at(logits_NV, ids_NK) - log_z_N[:, None], log_z_N


def logp_with_rest(logits_NV: Array, ids_NK: Array) -> tuple[Array, Array]:
    """Return (log-probabilities [N, K + 1] at the ids and, last, of all others; log-sum-exp [N] of the logits)."""
    logits_NK, rest_N = logits_with_rest(logits_NV, ids_NK)
    logits_NX = jnp.concatenate([logits_NK, rest_N[:, None]], axis=-1)
    log_z_N = jax.nn.logsumexp(logits_NX, axis=-1)
    return logits_NX - log_z_N[:, None], log_z_N


# The gradient is written by hand: all tokens outside the support share one factor, the support is scattered in.
@jax.custom_vjp
def logits_with_rest(logits_NV: Array, ids_NK: Array) -> tuple[Array, Array]:
    """Return the logits at the ids, and the log-sum-exp of all other logits.

    Nothing is normalised. The other logits are summed directly, since 1 minus a sum of probabilities loses digits.

    Args:
      logits_NV: float32 [N, V].
      ids_NK: int [N, K], distinct within a row. An id of V or more stands for no token and may repeat.

    Returns:
      (float32 [N, K], -inf if an id is V or more; float32 [N], -inf if the ids are all tokens).
    """
    return _forward(logits_NV, ids_NK)[0]


def _forward(logits_NV, ids_NK):
    # logsumexp shifts by the largest logit outside the support. The largest of the row would let the sum underflow.
    others_NV = _set_at(logits_NV, ids_NK, jnp.full_like(ids_NK, -jnp.inf, dtype=logits_NV.dtype))
    rest_N = jax.nn.logsumexp(others_NV, axis=-1)
    return (logits_at(logits_NV, ids_NK), rest_N), (logits_NV, rest_N, ids_NK)


def _backward(residuals, cotangents):
    logits_NV, rest_N, ids_NK = residuals
    d_logits_NK, d_rest_N = cotangents
    has_rest_N = rest_N > -jnp.inf
    # Recomputed: an exponential in a fused pass costs less than an array [N, V] that is written and read.
    share_NV = jnp.exp(logits_NV - jnp.where(has_rest_N, rest_N, 0.0)[:, None])
    d_others_NV = share_NV * jnp.where(has_rest_N, d_rest_N, 0.0)[:, None]
    return _set_at(d_others_NV, ids_NK, d_logits_NK), None


logits_with_rest.defvjp(_forward, _backward)


def _set_at(x_NV: Array, ids_NK: Array, values_NK: Array) -> Array:
    """Return x with the values [N, K] at the ids; ids of V or more are dropped.

    vmap shows the compiler that rows are independent. With jnp.put_along_axis it gathers the ids over a mesh.
    """
    return jax.vmap(lambda x_V, ids_K, values_K: x_V.at[ids_K].set(values_K, mode="drop"))(x_NV, ids_NK, values_NK)
