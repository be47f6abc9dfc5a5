"""Beam search."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.decoding.base import NO_TOKEN, Eos, end_ids, is_end, last_prompt_tokens
from kd_jax.decoding.rules import NO_RULES, Process, Rules
from kd_jax.decoding.vocabulary import top_k
from kd_jax.models.base import Cache, Model
from kd_jax.types import Array, Inputs, Params

IMPOSSIBLE = -1e9  # log-probability of a place without a hypothesis


def length_penalty(length: Array, alpha: float) -> Array:
    """Compute ((5 + length) / 6) ** alpha (Wu et al. 2016, arXiv 1609.08144, eq. 14)."""
    return ((5.0 + length) / 6.0) ** alpha


class BeamOutput(NamedTuple):
    """Hypotheses of beam search, best first.

    Attributes:
      ids_BKT: int32, the end token included, NO_TOKEN (-1) after it.
      scores_BK: float32, the sum of log-probabilities divided by the length penalty.
      logp_BK: float32, the sum of log-probabilities.
    """

    ids_BKT: Array
    scores_BK: Array
    logp_BK: Array


class Hypotheses(NamedTuple):
    """K hypotheses of each row."""

    score_BK: Array
    logp_BK: Array
    ids_BKT: Array

    def merge(self, other: "Hypotheses") -> "Hypotheses":
        """Return the K best of both by score; of ties this side's."""
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), self, other)
        _, best_BK = jax.lax.top_k(both.score_BK, self.score_BK.shape[1])
        return jax.tree.map(lambda x: _select(x, best_BK), both)


class BeamSearchState(NamedTuple):
    """State of beam search.

    Attributes:
      written: int32 scalar, tokens written so far.
      open_logp_BK: float32, the sums of log-probabilities of the open hypotheses, in descending order.
      open_ids_BKT: int32, their ids.
      ended: the best hypotheses that have ended, by score.
      cache: of the open hypotheses.
    """

    written: Array
    open_logp_BK: Array
    open_ids_BKT: Array
    ended: Hypotheses
    cache: Cache


def beam_search(
    model: Model,
    params: Params,
    inputs: Inputs,
    *,
    eos: Eos,
    length: int,
    beam: int,
    alpha: float,
    best: int = 0,
    rules: Rules = NO_RULES,
) -> BeamOutput:
    """Search for the hypotheses with the best scores, with K = beam open hypotheses.

    The score is the sum of log-probabilities divided by the length penalty. Each step considers 2K candidates (with two
    end tokens 3K, and so on), so that K remain open if some end. A row ends when the worst of its returned hypotheses
    beats the best score that an open one can still reach. If fewer have ended within `length`, open hypotheses follow
    them. Rules change log-probabilities, which are not normalised again, as in transformers.

    Args:
      model: the network.
      params: its parameters.
      inputs: prompts, as from a layout's `prompts`.
      eos: id of the end token, or several.
      length: maximum number of tokens written, static.
      beam: K.
      alpha: exponent of the length penalty; 0 for sums of log-probabilities.
      best: number of hypotheses to return, at most K; 0 for K. They do not depend on it, but fewer are found earlier.
      rules: of the texts, static.

    Returns:
      BeamOutput.

    References:
      Wu et al. 2016, arXiv 1609.08144, section 7.

    Examples:
      >>> from kd_jax import Tokens
      >>> likely = [[0, 0.6, 0.4, 0], [0, 0.5, 0, 0.5], [0, 0, 0, 1], [0, 0, 0, 1]]  # p of the next token
      >>> one = jnp.ones((1, 1), jnp.int32)
      >>> empty = Cache(jnp.int32(0), one[0], jnp.zeros((1, 1, 0), bool), jnp.arange(0), (), (), one > 0)
      >>> bigrams = Model(*[None] * 4, prefill=lambda *_: empty, extend=lambda table, cache, ids: (table[ids], cache))
      >>> prompts = Inputs(one[0], Tokens(0 * one, 0 * one, one), None)  # token 0 begins, token 3 ends
      >>> search = jax.jit(functools.partial(beam_search, bigrams, eos=3, length=3, beam=2, alpha=0.0))
      >>> output = search(jnp.log(jnp.array(likely)), prompts)
      >>> for ids, logp in zip(output.ids_BKT[0].tolist(), output.logp_BK[0]):
      ...     print(f"{ids} {jnp.exp(logp):.2f}")
      [2, 3, -1] 0.40
      [1, 3, -1] 0.30
    """
    token_B, is_real_B = last_prompt_tokens(inputs)
    rows = len(token_B)
    ids_BKT = jnp.full((rows, beam, length), NO_TOKEN, jnp.int32)
    none_BK = jnp.full((rows, best or beam), IMPOSSIBLE)
    open_logp_BK = jnp.full((rows, beam), IMPOSSIBLE).at[:, 0].set(0.0)
    cache = model.prefill(params, inputs, length).reserve(length * (beam - 1)).fork(beam)
    first = BeamSearchState(
        jnp.int32(0), open_logp_BK, ids_BKT, Hypotheses(none_BK, none_BK, ids_BKT[:, : best or beam]), cache
    )
    max_penalty = length_penalty(jnp.float32(length), alpha)

    def unfinished(state: BeamSearchState) -> Array:
        # Sums of log-probabilities only decrease, so the bound of an open hypothesis has the largest penalty.
        is_open_B = is_real_B & (state.ended.score_BK[:, -1] < state.open_logp_BK[:, 0] / max_penalty)
        return (state.written < length) & is_open_B.any()

    process = rules.processor(inputs, eos, length)
    step = functools.partial(_step, model, params, token_B, eos, alpha, process)
    last = jax.lax.while_loop(unfinished, step, first)
    return _rank(last.ended, Hypotheses(last.open_logp_BK / max_penalty, last.open_logp_BK, last.open_ids_BKT))


def _rank(ended: Hypotheses, unended: Hypotheses) -> BeamOutput:
    """Return the ended hypotheses by score, followed by open ones by score."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), ended, unended)
    is_last_BX = jnp.broadcast_to(jnp.arange(both.score_BK.shape[1]) >= ended.score_BK.shape[1], both.score_BK.shape)
    is_last_BX |= both.score_BK <= IMPOSSIBLE / 2  # places without a hypothesis
    # Sorted by two keys: an offset to the scores of open hypotheses would round them.
    order_BX = jnp.lexsort((-both.score_BK, is_last_BX), axis=-1)
    best = jax.tree.map(lambda x: _select(x, order_BX[:, : ended.score_BK.shape[1]]), both)
    return BeamOutput(best.ids_BKT, best.score_BK, best.logp_BK)


def _select(x_BX: Array, index_BK: Array) -> Array:
    """Return x[b, index[b, k]], with any further axes."""
    return jnp.take_along_axis(x_BX, index_BK.reshape(*index_BK.shape, *[1] * (x_BX.ndim - 2)), axis=1)


def _step(
    model: Model,
    params: Params,
    first_B: Array,
    eos: Eos,
    alpha: float,
    process: Process | None,
    state: BeamSearchState,
) -> BeamSearchState:
    """Write one token more for every open hypothesis."""
    rows, beam, length = state.open_ids_BKT.shape
    candidates = (1 + len(end_ids(eos))) * beam
    previous_BK = jax.lax.dynamic_slice_in_dim(state.open_ids_BKT, jnp.maximum(state.written - 1, 0), 1, 2)[..., 0]
    token_BK = jnp.where(state.written == 0, first_B[:, None], previous_BK)
    logits_BKV, cache = model.extend(params, state.cache, token_BK)
    logits_XV, count = logits_BKV.reshape(rows * beam, -1), min(candidates, logits_BKV.shape[2])
    log_sum_X1 = jax.nn.logsumexp(logits_XV, -1, keepdims=True)
    if process:
        logp_XV = process(logits_XV - log_sum_X1, state.open_ids_BKT.reshape(rows * beam, length), state.written)
        logp_XC, token_XC = top_k(logp_XV, count)
    else:
        # The best of all candidates are among the best of each hypothesis, so only those are normalised.
        best_XC, token_XC = top_k(logits_XV, count)
        logp_XC = best_XC - log_sum_X1
    flat_BX = (state.open_logp_BK.reshape(-1, 1) + logp_XC).reshape(rows, -1)
    logp_BC, index_BC = jax.lax.top_k(flat_BX, candidates)
    origin_BC, token_BC = index_BC // count, _select(token_XC.reshape(rows, -1), index_BC)
    ids_BCT = jax.lax.dynamic_update_slice_in_dim(
        _select(state.open_ids_BKT, origin_BC), token_BC[:, :, None], state.written, 2
    )
    ends_BC = is_end(token_BC, eos)

    open_logp_BK, open_BK = jax.lax.top_k(jnp.where(ends_BC, IMPOSSIBLE, logp_BC), beam)
    cache = cache.reorder(jnp.take_along_axis(origin_BC, open_BK, 1))

    # The log-probability is kept beside the score: score times penalty would be rounded.
    penalty = length_penalty((state.written + 1).astype(jnp.float32), alpha)
    ended = state.ended.merge(Hypotheses(jnp.where(ends_BC, logp_BC / penalty, IMPOSSIBLE), logp_BC, ids_BCT))
    return BeamSearchState(state.written + 1, open_logp_BK, _select(ids_BCT, open_BK), ended, cache)
