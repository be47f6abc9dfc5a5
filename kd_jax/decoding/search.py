"""Greedy decoding, sampling and beam search over a model's pure functions, with a KV cache.

All are jittable: one `lax.while_loop` over positions that ends when every row has ended. Rows whose
source is all masked only fill up a batch; they end at once.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.types import Array, DecodeCache, Model, Params

NEVER = -1e9
PAD = 0


def likeliest(logits_NV: Array) -> Array:
    """The first id of the largest logit, int32 [N]; on CPU 7 times as fast as XLA's argmax."""
    largest_NV = logits_NV == logits_NV.max(-1, keepdims=True)
    ids_NV = jax.lax.broadcasted_iota(jnp.int32, logits_NV.shape, 1)
    return jnp.where(largest_NV, ids_NV, logits_NV.shape[-1]).min(-1)


def greedy(
    model: Model, params: Params, source_BS: Array, source_mask_BS: Array, *, start: int, eos: int, length: int
) -> Array:
    """The likeliest token at each step.

    Args:
      model, params: the network.
      source_BS, source_mask_BS: int32 and bool.
      start, eos: ids that begin and end a target.
      length: most tokens written, static.

    Returns:
      int32 [B, T], the end of the sentence included, zeros behind it.
    """
    return _roll(
        model, params, source_BS, source_mask_BS, start, eos, length, lambda logits_BV, _: likeliest(logits_BV)
    )


def sample(
    model: Model,
    params: Params,
    source_BS: Array,
    source_mask_BS: Array,
    key: Array,
    *,
    start: int,
    eos: int,
    length: int,
    temperature: float = 1.0,
) -> Array:
    """One draw from softmax(logits / temperature) at each step; otherwise as `greedy`."""

    def draw(logits_BV: Array, position: Array) -> Array:
        return jax.random.categorical(jax.random.fold_in(key, position), logits_BV / temperature)

    return _roll(model, params, source_BS, source_mask_BS, start, eos, length, draw)


class Loop(NamedTuple):
    """One hypothesis per row, in the making."""

    position: Array
    token_B: Array
    ended_B: Array
    ids_BT: Array
    cache: DecodeCache


def _roll(
    model: Model,
    params: Params,
    source_BS: Array,
    source_mask_BS: Array,
    start: int,
    eos: int,
    length: int,
    choose: Callable[[Array, Array], Array],
) -> Array:
    """Writes `choose(logits_BV, position)` until every row has ended."""
    rows = source_BS.shape[0]

    def step(loop: Loop) -> Loop:
        logits_BV, cache = model.decode_step(params, loop.cache, loop.token_B, loop.position)
        token_B = jnp.where(loop.ended_B, PAD, choose(logits_BV, loop.position))
        ids_BT = jax.lax.dynamic_update_slice_in_dim(loop.ids_BT, token_B[:, None], loop.position, 1)
        return Loop(loop.position + 1, token_B, loop.ended_B | (token_B == eos), ids_BT, cache)

    first = Loop(
        position=jnp.int32(0),
        token_B=jnp.full(rows, start, jnp.int32),
        ended_B=~source_mask_BS.any(-1),
        ids_BT=jnp.full((rows, length), PAD, jnp.int32),
        cache=model.start(params, source_BS, source_mask_BS, length),
    )
    return jax.lax.while_loop(lambda loop: (loop.position < length) & ~loop.ended_B.all(), step, first).ids_BT


def length_penalty(length: Array, alpha: float) -> Array:
    """((5 + length) / 6) ** alpha (Wu et al. 2016, arXiv 1609.08144, eq. 14)."""
    return ((5.0 + length) / 6.0) ** alpha


def penalties(ids_BKT: Array, alpha: float) -> Array:
    """Each hypothesis's length penalty [B, K]: a score times it is the sum of log-probabilities again."""
    return length_penalty((ids_BKT != PAD).sum(-1).astype(jnp.float32), alpha)


class Decoded(NamedTuple):
    """Hypotheses, best first.

    Attributes:
      ids_BKT: int32, the end-of-sentence id included, zeros behind it.
      scores_BK: float32, the sum of log-probabilities over the length penalty.
    """

    ids_BKT: Array
    scores_BK: Array


class Beam(NamedTuple):
    """Open hypotheses, by sum of log-probabilities, and ended ones, by normalised score; K of each."""

    position: Array
    open_logp_BK: Array
    open_ids_BKT: Array
    ended_score_BK: Array
    ended_ids_BKT: Array
    cache: DecodeCache


def beam_search(
    model: Model,
    params: Params,
    source_BS: Array,
    source_mask_BS: Array,
    *,
    start: int,
    eos: int,
    length: int,
    beam: int,
    alpha: float,
) -> Decoded:
    """The `beam` best hypotheses found, K = beam, best first.

    2K candidates are looked at in each step, so that K can stay open whatever ends. A row ends when its
    worst ended hypothesis beats the best that an open one could still reach. Where fewer than K ended
    within `length`, open hypotheses fill up behind them.

    Args:
      As `greedy`, and:
      beam: K.
      alpha: exponent of the length penalty; 0 for sums of log-probabilities.
    """
    rows = source_BS.shape[0]
    spread = lambda x: jnp.repeat(x, beam, axis=0)  # noqa: E731
    cache = jax.tree.map(spread, model.start(params, source_BS, source_mask_BS, length))
    ids_BKT = jnp.full((rows, beam, length), PAD, jnp.int32)
    empty_BK = jnp.full((rows, beam), NEVER)
    first = Beam(jnp.int32(0), empty_BK.at[:, 0].set(0.0), ids_BKT, empty_BK, ids_BKT, cache)
    real_B = source_mask_BS.any(-1)

    def unfinished(state: Beam) -> Array:
        # Log-probabilities only fall, so an open one's bound divides by the largest penalty it can reach.
        bound_B = state.open_logp_BK[:, 0] / length_penalty(jnp.float32(length), alpha)
        return (state.position < length) & (real_B & (state.ended_score_BK[:, -1] < bound_B)).any()

    step = functools.partial(_beam_step, model, params, start, eos, beam, alpha)
    last = jax.lax.while_loop(unfinished, step, first)
    # Open hypotheses rank behind every ended one.
    open_BK = last.open_logp_BK / length_penalty(jnp.float32(length), alpha) + NEVER / 2
    scores_BX = jnp.concatenate([last.ended_score_BK, open_BK], 1)
    ids_BXT = jnp.concatenate([last.ended_ids_BKT, last.open_ids_BKT], 1)
    scores_BK, best_BK = jax.lax.top_k(scores_BX, beam)
    return Decoded(_pick(ids_BXT, best_BK), jnp.where(scores_BK < NEVER / 4, scores_BK - NEVER / 2, scores_BK))


def _pick(x_BXT: Array, index_BK: Array) -> Array:
    return jnp.take_along_axis(x_BXT, index_BK[:, :, None], axis=1)


def _beam_step(model: Model, params: Params, start: int, eos: int, beam: int, alpha: float, state: Beam) -> Beam:
    """One more token for every open hypothesis."""
    rows, _, length = state.open_ids_BKT.shape
    before = jax.lax.dynamic_slice_in_dim(state.open_ids_BKT, jnp.maximum(state.position - 1, 0), 1, 2)[..., 0]
    token_BK = jnp.where(state.position == 0, start, before)
    logits, cache = model.decode_step(params, state.cache, token_BK.reshape(-1), state.position)
    vocab_size = logits.shape[-1]
    logp_BKV = jax.nn.log_softmax(logits.astype(jnp.float32), -1).reshape(rows, beam, vocab_size)
    flat_BX = (state.open_logp_BK[:, :, None] + logp_BKV).reshape(rows, -1)
    logp_BC, flat_BC = jax.lax.top_k(flat_BX, 2 * beam)
    origin_BC, token_BC = flat_BC // vocab_size, (flat_BC % vocab_size).astype(jnp.int32)
    ids_BCT = jax.lax.dynamic_update_slice_in_dim(
        _pick(state.open_ids_BKT, origin_BC), token_BC[:, :, None], state.position, 2
    )
    ends_BC = token_BC == eos

    open_logp_BK, keep_BK = jax.lax.top_k(jnp.where(ends_BC, NEVER, logp_BC), beam)
    origin_BK = jnp.take_along_axis(origin_BC, keep_BK, 1)
    # Keys and values move with their hypotheses; the source's are the same for all of an example's.
    place = (jnp.arange(rows)[:, None] * beam + origin_BK).reshape(-1)
    cache = cache._replace(self_kv=jax.tree.map(lambda x: x[place], cache.self_kv))

    score_BC = jnp.where(ends_BC, logp_BC / length_penalty((state.position + 1).astype(jnp.float32), alpha), NEVER)
    score_BX = jnp.concatenate([state.ended_score_BK, score_BC], 1)
    ended_score_BK, best_BK = jax.lax.top_k(score_BX, beam)
    ended_ids_BKT = _pick(jnp.concatenate([state.ended_ids_BKT, ids_BCT], 1), best_BK)
    return Beam(state.position + 1, open_logp_BK, _pick(ids_BCT, keep_BK), ended_score_BK, ended_ids_BKT, cache)
