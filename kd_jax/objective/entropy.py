"""The targets at which the student is least certain: a term may learn from a share of the positions alone."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models.base import Head
from kd_jax.objective.fused_head import map_head
from kd_jax.objective.terms import Terms
from kd_jax.types import Array


def selective_terms(terms: Terms) -> dict[str, float]:
    """Return term name -> share of the terms that read the targets of the highest entropy alone."""
    return {name: term.entropy_share for name, term in terms.items() if term.entropy_share < 1.0}


def count_selected(mask_BT: Array, segment_BT: Array, share: float) -> Array:
    """Return the number of selected targets of a batch, an int32 scalar; it depends on the masks alone.

    Args:
      mask_BT: bool, true where a target counts.
      segment_BT: int32, the example of each position; 0 is padding.
      share: share of the counted targets of each example.

    Examples:
      >>> segments = jnp.array([[1, 1, 1, 2, 2, 0]])  # one of three targets, and one of two
      >>> count_selected(segments > 0, segments, 0.3).item()
      2
    """
    return _quotas(share, _counts(mask_BT, _runs(segment_BT))).sum(dtype=jnp.int32)


def select(entropy_BT: Array, mask_BT: Array, segment_BT: Array, share: float) -> Array:
    """Return where the entropy is among the highest of its example, bool [B, T].

    An example of n counted targets has max(1, ceil(share n)) of them selected; of equal entropies the first. Examples
    that share a row are selected from one by one; the positions of an example are contiguous.

    Args:
      entropy_BT: float32, the entropy of the student's prediction of each target.
      mask_BT: bool, true where a target counts.
      segment_BT: int32, the example of each position; 0 is padding.
      share: share of the counted targets of each example.

    References:
      Tavor et al. 2026, arXiv 2602.01395 (SE-KD): the student's entropy as the signal that selects positions.

    Examples:
      >>> entropy = jnp.array([[0.1, 0.9, 0.5, 0.2, 0.3]])  # the last position is another example
      >>> segments = jnp.array([[1, 1, 1, 1, 2]])
      >>> select(entropy, segments > 0, segments, 0.5).tolist()
      [[False, True, True, False, True]]
    """
    run_BT, place_BT = _runs(segment_BT), jax.lax.broadcasted_iota(jnp.int32, mask_BT.shape, 1)
    # Within each run: counted targets first, by descending entropy, then by place. Runs stay where they are in the row.
    keys = (run_BT, (~mask_BT).astype(jnp.int32), -entropy_BT, place_BT)
    *_, sorted_place_BT = jax.lax.sort(keys, dimension=1, num_keys=4)
    start_BT = jax.lax.cummax(jnp.where(_is_start(segment_BT), place_BT, 0), axis=1)
    quota_BT = jnp.take_along_axis(_quotas(share, _counts(mask_BT, run_BT)), run_BT, axis=1)
    is_selected_BT = (place_BT - start_BT < quota_BT).astype(jnp.int32)
    return jax.lax.sort((sorted_place_BT, is_selected_BT), dimension=1, num_keys=1)[1] > 0


def select_by_entropy(
    shares: Mapping[str, float], hidden_BTD: Array, head: Head, mask_BT: Array, segment_BT: Array
) -> dict[str, Array]:
    """Return term name -> selected targets, bool [B, T], by the entropy of the student's predictions.

    The logits exist in chunks only, and no gradient flows. It costs a second pass of the output layer.

    Args:
      shares: term name -> share of the counted targets of each example.
      hidden_BTD: float, the student's hidden states.
      head: the student's output layer.
      mask_BT: bool, true where a target counts.
      segment_BT: int32, the example of each position; 0 is padding.
    """
    hidden_ND, head = jax.lax.stop_gradient((hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), head))
    entropy_BT = map_head(lambda logits_CV, _: entropy(logits_CV), hidden_ND, head).reshape(mask_BT.shape)
    by_share = {share: select(entropy_BT, mask_BT, segment_BT, share) for share in set(shares.values())}
    return {name: by_share[share] for name, share in shares.items()}


def entropy(logits_NV: Array) -> Array:
    """Return the entropy of the softmax of logits, float32 [N], in nats.

    Examples:
      >>> print(entropy(jnp.zeros((1, 4))))  # log 4
      [1.3862944]
    """
    logp_NV = jax.nn.log_softmax(logits_NV.astype(jnp.float32))
    return -jnp.where(logp_NV > -jnp.inf, jnp.exp(logp_NV) * logp_NV, 0.0).sum(-1)


def _is_start(segment_BT: Array) -> Array:
    """Return whether an example, or the padding, starts at a position, bool [B, T]."""
    changes_BT = segment_BT[:, 1:] != segment_BT[:, :-1]
    return jnp.pad(changes_BT, ((0, 0), (1, 0)), constant_values=True)


def _runs(segment_BT: Array) -> Array:
    """Return the number of each position's example in its row, from 0, int32 [B, T]; padding counts as one."""
    return jnp.cumsum(_is_start(segment_BT), axis=1, dtype=jnp.int32) - 1


def _counts(mask_BT: Array, run_BT: Array) -> Array:
    """Return the number of counted targets of each run, int32 [B, T]; 0 beyond the last run."""
    zeros_T = jnp.zeros(mask_BT.shape[1], jnp.int32)
    return jax.vmap(lambda mask_T, run_T: zeros_T.at[run_T].add(mask_T.astype(jnp.int32)))(mask_BT, run_BT)


def _quotas(share: float, counts_BT: Array) -> Array:
    """Return the number of targets to select for each number of counted targets, int32 [B, T]."""
    # A table in float64: in float32, 0.3 of 10 targets may be more than 3. Rounding removes the error of the product.
    numbers = np.arange(counts_BT.shape[1] + 1)
    quotas = np.ceil(np.round(share * numbers, 9)).astype(np.int32)
    return jnp.asarray(np.where(numbers > 0, np.maximum(quotas, 1), 0))[counts_BT]
