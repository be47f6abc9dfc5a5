"""Skipping of updates whose gradient is not finite or a spike."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kd_jax.types import Array, Params

DECAY = 0.98  # of the running mean, which spans about 50 updates
WARMUP = 20  # applied updates before a gradient can be a spike


class SkipState(NamedTuple):
    """State of `skip_outliers`.

    Attributes:
      skipped: int32, updates skipped so far.
      applied: int32, updates applied so far.
      norm: float32, running mean of the gradient's norm over the applied updates, not corrected for its start at 0.
      inner: state of the wrapped transformation.
    """

    skipped: Array
    applied: Array
    norm: Array
    inner: optax.OptState


# Not optax.apply_if_finite: it has no rule for spikes, and after too many non-finite updates in a row it applies them.
# Training stops instead, see Optimizer.max_skipped_updates.
def skip_outliers(inner: optax.GradientTransformation, ratio: float) -> optax.GradientTransformation:
    r"""Skip updates whose gradient is not finite or whose norm is a spike.

    A skipped update changes neither the parameters nor the inner state. A norm is a spike if

    .. math:: \|g_n\| > r \, m_n, \quad m_n = \frac{\sum_i \beta^{n-i} \|g_i\|}{\sum_i \beta^{n-i}}

    over the updates i that were applied before, with beta = 0.98, after the first 20 of them.

    Args:
      inner: the transformation to wrap; clipping belongs into it, since norms are those before it.
      ratio: r; 0 to skip only gradients that are not finite.
    """

    def init(params: Params) -> SkipState:
        return SkipState(jnp.int32(0), jnp.int32(0), jnp.float32(0), inner.init(params))

    def update(gradient: Params, state: SkipState, params: Params | None = None) -> tuple[Params, SkipState]:
        norm = optax.tree.norm(gradient)
        mean_norm = state.norm / (1 - DECAY ** jnp.maximum(state.applied, 1).astype(jnp.float32))
        is_spike = (norm > ratio * mean_norm) & (state.applied >= WARMUP) if ratio else jnp.array(False)
        is_good = jnp.isfinite(norm) & ~is_spike
        updates, inner_state = inner.update(gradient, state.inner, params)
        select = lambda new, old: jax.tree.map(lambda a, b: jnp.where(is_good, a, b), new, old)  # noqa: E731
        applied = is_good.astype(jnp.int32)
        new_state = SkipState(
            skipped=state.skipped + 1 - applied,
            applied=state.applied + applied,
            norm=jnp.where(is_good, DECAY * state.norm + (1 - DECAY) * norm, state.norm),
            inner=select(inner_state, state.inner),
        )
        return select(updates, jax.tree.map(jnp.zeros_like, updates)), new_state

    # optax's protocols have its own types of parameters and states.
    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
