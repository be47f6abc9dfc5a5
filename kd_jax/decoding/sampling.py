"""Sampling over a model's pure functions, with a KV cache; jittable.

The logits go the way of transformers' `generate`: repetition penalty, temperature, top_k, top_p, min_p. Where tokens
tie at a limit, the first ids are kept, so that no more are kept than were asked for.
"""

import jax
import jax.numpy as jnp

from kd_jax.decoding.base import argmax, token_by_token, top_k
from kd_jax.models.base import Model
from kd_jax.tasks.base import Sampling
from kd_jax.types import Array, Inputs, Params, Tokens


def sample(model: Model, params: Params, inputs: Inputs, *, eos: int, length: int, sampling: Sampling) -> Array:
    """One token after another, drawn as `sampling` says; the likeliest where its temperature is 0.

    The draw of a row at a position depends on `sampling.seed`, the row's `index_B` and the position alone: a text is
    the same in any batch and on any number of devices. The repetition penalty counts the tokens of the prompt and those
    written; padding does not count, nor does the end, which would else be put off wherever a prompt has one.

    Args:
      model, params, inputs, eos, length: as `greedy`.
      sampling: how each token is chosen, static.

    Returns:
      int32 [B, T], as `greedy`.

    Examples:
      >>> bigrams = Model(*[None] * 4, prefill=lambda *_: (), extend=lambda table, cache, ids: (table[ids], cache))
      >>> start, one = jnp.array([[1], [1]]), jnp.array([[1], [1]])
      >>> prompts = Inputs(jnp.array([0, 1]), Tokens(start, 0 * one, one), None)
      >>> table = jnp.log(jnp.eye(5, k=1))  # token i + 1 follows token i, surely
      >>> sample(bigrams, table, prompts, eos=4, length=5, sampling=Sampling(temperature=1.0)).tolist()
      [[2, 3, 4, -1, -1], [2, 3, 4, -1, -1]]
      >>> loop = 2.0 * jnp.eye(5) + jnp.eye(5, k=1)  # token i follows itself, but for the penalty
      >>> sample(bigrams, loop, prompts, eos=4, length=5, sampling=Sampling(repetition_penalty=3.0)).tolist()
      [[2, 3, 4, -1, -1], [2, 3, 4, -1, -1]]
    """
    fold_in_each = jax.vmap(jax.random.fold_in, (None, 0))
    keys_B = fold_in_each(jax.random.key(sampling.seed), inputs.index_B)
    penalised = sampling.repetition_penalty != 1

    def choose(logits_BV: Array, written: Array, seen_BV: Array | tuple[()]) -> tuple[Array, Array | tuple[()]]:
        if penalised:
            logits_BV = penalise(logits_BV, seen_BV, sampling.repetition_penalty)
        if sampling.temperature:
            keys_now_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, written)
            token_B = draw(keys_now_B, truncate(logits_BV, sampling))
        else:
            token_B = argmax(logits_BV)
        return token_B, seen_BV.at[jnp.arange(len(token_B)), token_B].set(True) if penalised else ()

    seen = _seen(model, params, inputs, eos) if penalised else ()
    return token_by_token(model, params, inputs, eos=eos, length=length, choose=choose, memory=seen)


def _seen(model: Model, params: Params, inputs: Inputs, eos: int) -> Array:
    """Which tokens stand in each row's prompt, bool [B, V]; the end never does."""
    prompt: Tokens = inputs.decoder if inputs.encoder is None else inputs.encoder
    logits = jax.eval_shape(lambda: model.step(params, model.prefill(params, inputs, 1), inputs.decoder.ids_BT[:, -1]))
    rows_B1 = jnp.arange(len(prompt.ids_BT))[:, None]
    stands_BS = (prompt.segment_BT > 0) & (prompt.ids_BT != eos)
    return jnp.zeros(logits[0].shape, bool).at[rows_B1, prompt.ids_BT].max(stands_BS)


def penalise(logits_NV: Array, seen_NV: Array, penalty: float) -> Array:
    """Logits of tokens seen before, divided by the penalty where positive and multiplied where negative.

    Args:
      logits_NV: float [N, V].
      seen_NV: bool [N, V].
      penalty: above 1 against repetition, below 1 for it.

    Returns:
      float [N, V].

    References:
      Keskar et al. 2019, arXiv 1909.05858, section 4.1 (there over positive scores alone).

    Examples:
      >>> penalise(jnp.array([[3.0, -3.0, 3.0]]), jnp.array([[True, True, False]]), 2.0).tolist()
      [[1.5, -6.0, 3.0]]
    """
    penalised_NV = jnp.where(logits_NV > 0, logits_NV / penalty, logits_NV * penalty)
    return jnp.where(seen_NV, penalised_NV, logits_NV)


def truncate(logits_NV: Array, sampling: Sampling) -> Array:
    """Logits over the temperature, -inf where a token is not to be drawn; no sort of the vocabulary.

    Args:
      logits_NV: float [N, V].
      sampling: its temperature, more than 0, and then top_k, top_p and min_p, each over what the one before left.

    Returns:
      float32 [N, V], in no way normalised.

    Examples:
      >>> logits_NV = jnp.log(jnp.array([[0.4, 0.1, 0.3, 0.2]]))
      >>> for sampling in (Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.6), Sampling(1.0, min_p=0.6)):
      ...     print(jnp.isfinite(truncate(logits_NV, sampling)))
      [[ True False  True  True]]
      [[ True False  True False]]
      [[ True False  True False]]
    """
    logits_NV = logits_NV.astype(jnp.float32) / sampling.temperature
    if sampling.top_k:
        logits_NV = jnp.where(_top_k(logits_NV, min(sampling.top_k, logits_NV.shape[1])), logits_NV, -jnp.inf)
    if sampling.top_p < 1:
        logits_NV = jnp.where(_nucleus(logits_NV, sampling.top_p), logits_NV, -jnp.inf)
    if sampling.min_p:
        least_N1 = logits_NV.max(-1, keepdims=True) + jnp.log(sampling.min_p)
        logits_NV = jnp.where(logits_NV >= least_N1, logits_NV, -jnp.inf)
    return logits_NV


def _top_k(logits_NV: Array, k: int) -> Array:
    """True at the k largest logits of each row; of those that tie, at the first."""
    values_NK, ids_NK = top_k(logits_NV, k)
    # Not values_NK[:, -1:]: where a slice follows top_k, XLA on CPU sorts the whole row, 50 times as slow.
    least_N1 = values_NK.min(-1, keepdims=True)
    last_N1 = jnp.where(values_NK == least_N1, ids_NK, -1).max(-1, keepdims=True)
    ids_NV = jax.lax.broadcasted_iota(jnp.int32, logits_NV.shape, 1)
    return (logits_NV > least_N1) | (logits_NV == least_N1) & (ids_NV <= last_N1)


def _nucleus(logits_NV: Array, top_p: float) -> Array:
    """True at the fewest likeliest tokens of each row that reach probability top_p; of those that tie, at the first.

    The least probability among them is found by halving the range of floats from 0 to 1, exactly: not negative, they
    are in the order of their bits. 30 sums over a row; on CPU a sort takes 20 times as long.
    """
    p_NV = jax.nn.softmax(logits_NV)
    bits_NV = jax.lax.bitcast_convert_type(p_NV, jnp.int32)
    mass = lambda among_NV: jnp.where(among_NV, p_NV, 0.0).sum(-1, keepdims=True)  # noqa: E731

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low_N1, high_N1 = bounds
        middle_N1 = (low_N1 + high_N1) // 2
        reaches_N1 = mass(bits_NV >= middle_N1) >= top_p
        return jnp.where(reaches_N1, middle_N1, low_N1), jnp.where(reaches_N1, high_N1, middle_N1)

    zero_N1 = jnp.zeros((len(p_NV), 1), jnp.int32)
    above_one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32) + 1
    least_N1, _ = jax.lax.fori_loop(0, 30, halve, (zero_N1, zero_N1 + above_one))
    ties_NV = bits_NV == least_N1
    before_NV = mass(bits_NV > least_N1) + jnp.cumsum(jnp.where(ties_NV, p_NV, 0.0), -1) - p_NV
    return (bits_NV > least_N1) | ties_NV & (before_NV < top_p)


def draw(keys_N: Array, logits_NV: Array) -> Array:
    """One draw of each row's softmax by its own key, int32 [N]: the first token at which the distribution passes it.

    One uniform number per row is 4 times as fast on CPU as the V of `jax.random.categorical`.

    Args:
      keys_N: typed keys.
      logits_NV: float32 [N, V]; -inf is never drawn.

    Examples:
      >>> draw(jax.random.split(jax.random.key(0), 2), jnp.log(jnp.eye(2))).tolist()
      [0, 1]
    """
    p_NV = jax.nn.softmax(logits_NV)
    possible_NV = p_NV > 0  # a running sum may rise by rounding where p is 0
    sums_NV = jnp.cumsum(p_NV, -1)
    total_N1 = jnp.where(possible_NV, sums_NV, 0.0).max(-1, keepdims=True)
    point_N1 = jax.vmap(jax.random.uniform)(keys_N)[:, None] * total_N1
    return argmax(possible_NV & (sums_NV > point_N1))
