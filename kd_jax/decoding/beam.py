"""Beam search over a model's pure functions, with a KV cache; jittable."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.decoding.base import NO_TOKEN, first_tokens, top_k
from kd_jax.models.base import Cache, Model
from kd_jax.types import Array, Inputs, Params

NEVER = -1e9


def length_penalty(length: Array, alpha: float) -> Array:
    """((5 + length) / 6) ** alpha (Wu et al. 2016, arXiv 1609.08144, eq. 14).

    Examples:
      >>> float(length_penalty(jnp.float32(7.0), 0.5))  # sqrt(12 / 6)
      1.414213...
    """
    return ((5.0 + length) / 6.0) ** alpha


class Decoded(NamedTuple):
    """Hypotheses, best first.

    Attributes:
      ids_BKT: int32, the end included, NO_TOKEN behind it.
      scores_BK: float32, the sum of log-probabilities over the length penalty.
      logp_BK: float32, the sum of log-probabilities.
    """

    ids_BKT: Array
    scores_BK: Array
    logp_BK: Array


class Ended(NamedTuple):
    """The best hypotheses that have ended, by score; as many of each row as are returned."""

    score_BK: Array
    logp_BK: Array
    ids_BKT: Array

    def best(self, other: "Ended") -> "Ended":
        """The best of both, as many as this side has; where scores tie, this side's."""
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), self, other)
        _, best_BK = jax.lax.top_k(both.score_BK, self.score_BK.shape[1])
        return jax.tree.map(lambda x: _pick(x, best_BK), both)


class BeamSearchState(NamedTuple):
    """Open hypotheses, K of each row by their sum of log-probabilities, and ended ones."""

    written: Array
    open_logp_BK: Array
    open_ids_BKT: Array
    ended: Ended
    cache: Cache


def beam_search(
    model: Model, params: Params, inputs: Inputs, *, eos: int, length: int, beam: int, alpha: float, best: int = 0
) -> Decoded:
    """The best hypotheses, best first, of a search that keeps K = beam of them open.

    2K candidates are looked at in each step, so that K can stay open whatever ends. A row ends when the
    worst of the hypotheses that it returns beats the best that an open one could still reach. Where fewer ended
    within `length`, open hypotheses fill up behind them.

    Args:
      model, params, inputs, eos, length: as `greedy`.
      beam: K.
      alpha: exponent of the length penalty; 0 for sums of log-probabilities.
      best: how many are returned, at most K; 0 for K. They are the same for any number, fewer are sooner certain.

    References:
      Wu et al. 2016, arXiv 1609.08144, section 7.

    Examples:
      >>> from kd_jax import Tokens
      >>> likely = [[0, 0.6, 0.4, 0], [0, 0.5, 0, 0.5], [0, 0, 0, 1], [0, 0, 0, 1]]  # each token behind each
      >>> one = jnp.ones((1, 1), jnp.int32)
      >>> nothing = jnp.zeros((1, 1, 0), bool), jnp.arange(0), (), (), one > 0
      >>> empty = Cache(jnp.int32(0), one[0], *nothing)
      >>> bigrams = Model(*[None] * 4, prefill=lambda *_: empty, extend=lambda table, cache, ids: (table[ids], cache))
      >>> prompts = Inputs(one[0], Tokens(0 * one, 0 * one, one), None)  # token 0 begins, token 3 ends
      >>> search = jax.jit(functools.partial(beam_search, bigrams, eos=3, length=3, beam=2, alpha=0.0))
      >>> best = search(jnp.log(jnp.array(likely)), prompts)
      >>> for ids, logp in zip(best.ids_BKT[0].tolist(), best.logp_BK[0]):
      ...     print(f"{ids} {jnp.exp(logp):.2f}")
      [2, 3, -1] 0.40
      [1, 3, -1] 0.30
    """
    token_B, real_B = first_tokens(inputs)
    rows = len(token_B)
    ids_BKT = jnp.full((rows, beam, length), NO_TOKEN, jnp.int32)
    none_BK = jnp.full((rows, best or beam), NEVER)
    open_logp_BK = jnp.full((rows, beam), NEVER).at[:, 0].set(0.0)
    cache = model.prefill(params, inputs, length).reserve(length * (beam - 1)).fork(beam)
    first = BeamSearchState(jnp.int32(0), open_logp_BK, ids_BKT, Ended(none_BK, none_BK, ids_BKT[:, : best or beam]), cache)
    most = length_penalty(jnp.float32(length), alpha)

    def unfinished(state: BeamSearchState) -> Array:
        # Log-probabilities only fall, so an open one's bound divides by the largest penalty it can reach.
        open_B = real_B & (state.ended.score_BK[:, -1] < state.open_logp_BK[:, 0] / most)
        return (state.written < length) & open_B.any()

    last = jax.lax.while_loop(unfinished, functools.partial(_step, model, params, token_B, eos, alpha), first)
    return _ranked(last.ended, Ended(last.open_logp_BK / most, last.open_logp_BK, last.open_ids_BKT))


def _ranked(ended: Ended, unended: Ended) -> Decoded:
    """Ended hypotheses by score, and behind them open ones by score: by two keys, so that no score is rounded."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), ended, unended)
    behind_BX = jnp.broadcast_to(jnp.arange(both.score_BK.shape[1]) >= ended.score_BK.shape[1], both.score_BK.shape)
    behind_BX |= both.score_BK <= NEVER / 2  # places that nothing ended in
    order_BX = jnp.lexsort((-both.score_BK, behind_BX), axis=-1)
    best = jax.tree.map(lambda x: _pick(x, order_BX[:, : ended.score_BK.shape[1]]), both)
    return Decoded(best.ids_BKT, best.score_BK, best.logp_BK)


def _pick(x_BX: Array, index_BK: Array) -> Array:
    """x[b, index[b, k]], whatever axes follow."""
    return jnp.take_along_axis(x_BX, index_BK.reshape(*index_BK.shape, *[1] * (x_BX.ndim - 2)), axis=1)


def _step(model: Model, params: Params, first_B: Array, eos: int, alpha: float, state: BeamSearchState) -> BeamSearchState:
    """One more token for every open hypothesis."""
    rows, beam, _ = state.open_ids_BKT.shape
    before_BK = jax.lax.dynamic_slice_in_dim(state.open_ids_BKT, jnp.maximum(state.written - 1, 0), 1, 2)[..., 0]
    token_BK = jnp.where(state.written == 0, first_B[:, None], before_BK)
    logits_BKV, cache = model.extend(params, state.cache, token_BK)
    # The best of all are among the best of each: only of those the log-probability is wanted.
    logits_XV, count = logits_BKV.reshape(rows * beam, -1), min(2 * beam, logits_BKV.shape[2])
    best_XC, token_XC = top_k(logits_XV, count)
    logp_XC = best_XC - jax.nn.logsumexp(logits_XV, -1, keepdims=True)
    flat_BX = (state.open_logp_BK.reshape(-1, 1) + logp_XC).reshape(rows, -1)
    logp_BC, place_BC = jax.lax.top_k(flat_BX, 2 * beam)
    origin_BC, token_BC = place_BC // count, _pick(token_XC.reshape(rows, -1), place_BC)
    ids_BCT = jax.lax.dynamic_update_slice_in_dim(
        _pick(state.open_ids_BKT, origin_BC), token_BC[:, :, None], state.written, 2
    )
    ends_BC = token_BC == eos

    open_logp_BK, stay_BK = jax.lax.top_k(jnp.where(ends_BC, NEVER, logp_BC), beam)
    cache = cache.reorder(jnp.take_along_axis(origin_BC, stay_BK, 1))

    # The log-probability is kept beside the score: the penalty is not divided out again.
    penalty = length_penalty((state.written + 1).astype(jnp.float32), alpha)
    ended = state.ended.best(Ended(jnp.where(ends_BC, logp_BC / penalty, NEVER), logp_BC, ids_BCT))
    return BeamSearchState(state.written + 1, open_logp_BK, _pick(ids_BCT, stay_BK), ended, cache)
