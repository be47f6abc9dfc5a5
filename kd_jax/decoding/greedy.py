"""Greedy decoding and sampling over a model's pure functions, with a KV cache.

Both are jittable: one `lax.while_loop` that ends when every row has ended. Rows that only fill up a batch
end at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.decoding.base import PAD, first_tokens, likeliest
from kd_jax.models.base import Cache, Model
from kd_jax.types import Array, Inputs, Params


def greedy(model: Model, params: Params, inputs: Inputs, *, eos: int, length: int) -> Array:
    """The likeliest token at each step.

    Args:
      model, params: the network.
      inputs: prompts, as a layout's `prompts` makes them.
      eos: id that ends a text.
      length: most tokens written, static.

    Returns:
      int32 [B, T], the end included, zeros behind it.

    Examples:
      >>> from kd_jax import Tokens
      >>> bigrams = Model(*[None] * 4, prefill=lambda *_: (), step=lambda table, cache, ids: (table[ids], cache))
      >>> start, one = jnp.array([[1]]), jnp.array([[1]])
      >>> prompts = Inputs(jnp.array([0]), Tokens(start, 0 * one, one), None)
      >>> greedy(bigrams, jnp.eye(5, k=1), prompts, eos=4, length=5).tolist()  # token i + 1 follows token i
      [[2, 3, 4, 0, 0]]
    """
    return _roll(model, params, inputs, eos, length, lambda logits_BV, _: likeliest(logits_BV))


def sample(
    model: Model, params: Params, inputs: Inputs, key: Array, *, eos: int, length: int, temperature: float = 1.0
) -> Array:
    """One draw from softmax(logits / temperature) at each step.

    Args:
      model, params, inputs, eos, length: as `greedy`.
      key: decides the draws.
      temperature: more than 0; below 1 the likely tokens are drawn more often.

    Returns:
      int32 [B, T], as `greedy`.

    Examples:
      >>> from kd_jax import Tokens
      >>> bigrams = Model(*[None] * 4, prefill=lambda *_: (), step=lambda table, cache, ids: (table[ids], cache))
      >>> start, one = jnp.array([[1]]), jnp.array([[1]])
      >>> prompts = Inputs(jnp.array([0]), Tokens(start, 0 * one, one), None)
      >>> table = jnp.log(jnp.eye(5, k=1))  # token i + 1 follows token i, surely
      >>> sample(bigrams, table, prompts, jax.random.key(0), eos=4, length=5).tolist()
      [[2, 3, 4, 0, 0]]
    """

    def draw(logits_BV: Array, written: Array) -> Array:
        return jax.random.categorical(jax.random.fold_in(key, written), logits_BV / temperature)

    return _roll(model, params, inputs, eos, length, draw)


class Loop(NamedTuple):
    """One hypothesis per row, in the making."""

    written: Array
    token_B: Array
    ended_B: Array
    ids_BT: Array
    cache: Cache


def _roll(
    model: Model, params: Params, inputs: Inputs, eos: int, length: int, choose: Callable[[Array, Array], Array]
) -> Array:
    """Writes `choose(logits_BV, tokens written)` until every row has ended."""

    def step(loop: Loop) -> Loop:
        logits_BV, cache = model.step(params, loop.cache, loop.token_B)
        token_B = jnp.where(loop.ended_B, PAD, choose(logits_BV, loop.written))
        ids_BT = jax.lax.dynamic_update_slice_in_dim(loop.ids_BT, token_B[:, None], loop.written, 1)
        return Loop(loop.written + 1, token_B, loop.ended_B | (token_B == eos), ids_BT, cache)

    token_B, real_B = first_tokens(inputs)
    first = Loop(
        written=jnp.int32(0),
        token_B=token_B,
        ended_B=~real_B,
        ids_BT=jnp.full((len(token_B), length), PAD, jnp.int32),
        cache=model.prefill(params, inputs, length),
    )
    return jax.lax.while_loop(lambda loop: (loop.written < length) & ~loop.ended_B.all(), step, first).ids_BT
