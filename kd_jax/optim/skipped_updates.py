"""Updates that would do harm are left out, and counted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kd_jax.types import Array, Params

MEMORY = 0.98  # of the running mean, so that it spans some 50 updates
TRUSTED = 20  # updates after which the running mean says what is usual


class OutlierState(NamedTuple):
    """State of `without_outliers`.

    Attributes:
      skipped: int32, updates that were left out so far.
      made: int32, those that were made.
      norm: float32, running mean of the gradient's norm over those made.
      inner: the wrapped transformation's.
    """

    skipped: Array
    made: Array
    norm: Array
    inner: optax.OptState


def without_outliers(inner: optax.GradientTransformation, ratio: float) -> optax.GradientTransformation:
    """`inner`, but where the gradient is not finite, or its norm a spike, nothing moves: neither parameters nor state.

    .. math:: \\|g_n\\| > r \\, m_n, \\quad m_n = \\frac{\\sum_i \\beta^{n-i} \\|g_i\\|}{\\sum_i \\beta^{n-i}}

    over the updates that were made before, from the twentieth of them on, with beta = 0.98.

    Args:
      inner: clipping included, since norms are those of what it is given.
      ratio: r, how many times the usual norm is a spike; 0 for only what is not finite.

    Examples:
      >>> tx = without_outliers(optax.sgd(1.0), ratio=0.0)
      >>> updates, state = tx.update(jnp.array([jnp.nan, 1.0]), tx.init(jnp.zeros(2)))
      >>> updates.tolist(), int(state.skipped)
      ([0.0, 0.0], 1)
    """

    def init(params: Params) -> OutlierState:
        return OutlierState(jnp.int32(0), jnp.int32(0), jnp.float32(0), inner.init(params))

    def update(gradient: Params, state: OutlierState, params: Params | None = None):
        norm = optax.tree.norm(gradient)
        usual = state.norm / (1 - MEMORY ** jnp.maximum(state.made, 1).astype(jnp.float32))
        spike = (norm > ratio * usual) & (state.made >= TRUSTED) if ratio else jnp.array(False)
        good = jnp.isfinite(norm) & ~spike
        updates, inner_state = inner.update(gradient, state.inner, params)
        pick = lambda new, old: jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)  # noqa: E731
        one = good.astype(jnp.int32)
        running = jnp.where(good, MEMORY * state.norm + (1 - MEMORY) * norm, state.norm)
        after = OutlierState(state.skipped + 1 - one, state.made + one, running, pick(inner_state, state.inner))
        return pick(updates, jax.tree.map(jnp.zeros_like, updates)), after

    return optax.GradientTransformation(init, update)
