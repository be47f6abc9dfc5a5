"""Shared parts of decoding, and the loop that writes token by token."""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.models.base import Cache, Model
from kd_jax.types import Array, Inputs, Params

NO_TOKEN = -1  # padding after the end token

Eos = int | tuple[int, ...]  # the id that ends a text, or several

# (scores_BV, number of tokens written so far) -> token_B
Choose = Callable[[Array, Array], Array]


def end_ids(eos: Eos) -> tuple[int, ...]:
    """Return the ids that end a text."""
    return eos if isinstance(eos, tuple) else (eos,)


def is_end(ids: Array, eos: Eos) -> Array:
    """Return where ids end a text, bool of their shape."""
    return functools.reduce(operator.or_, (ids == end for end in end_ids(eos)))


def suppress(model: Model, ids: tuple[int, ...]) -> Model:
    """Return the model with logits of -inf for some static ids, so that it never writes them."""
    if not ids:
        return model

    def extend(params: Params, cache: Cache, ids_BT: Array) -> tuple[Array, Cache]:
        logits_BTV, cache = model.extend(params, cache, ids_BT)
        return logits_BTV.at[..., jnp.array(ids)].set(-jnp.inf), cache

    return model._replace(extend=extend)


def last_prompt_tokens(inputs: Inputs) -> tuple[Array, Array]:
    """Return (the last token of each prompt, int32 [B]; False for rows of padding, bool [B])."""
    return inputs.decoder.ids_BT[:, -1], inputs.decoder.segment_BT[:, -1] > 0


class LoopState(NamedTuple):
    """State of `decode_token_by_token`, with one text per row."""

    written: Array
    token_B: Array
    ended_B: Array
    ids_BT: Array
    cache: Cache


def decode_token_by_token(
    model: Model,
    params: Params,
    inputs: Inputs,
    *,
    eos: Eos,
    length: int,
    choose: Choose,
    process: Callable[[Array, Array, Array], Array] | None,
) -> Array:
    """Write one token after another until every row has ended, in one `lax.while_loop`.

    Rows of padding end at once. `length` is static; `process` changes the logits, as `Rules.processor`.

    Returns:
      int32 [B, length], the end token included, NO_TOKEN after it.
    """

    def step(state: LoopState) -> LoopState:
        logits_BV, cache = model.step(params, state.cache, state.token_B)
        if process:
            logits_BV = process(logits_BV, state.ids_BT, state.written)
        token_B = jnp.where(state.ended_B, NO_TOKEN, choose(logits_BV, state.written))
        ids_BT = jax.lax.dynamic_update_slice_in_dim(state.ids_BT, token_B[:, None], state.written, 1)
        return LoopState(state.written + 1, token_B, state.ended_B | is_end(token_B, eos), ids_BT, cache)

    token_B, is_real_B = last_prompt_tokens(inputs)
    first = LoopState(
        written=jnp.int32(0),
        token_B=token_B,
        ended_B=~is_real_B,
        ids_BT=jnp.full((len(token_B), length), NO_TOKEN, jnp.int32),
        cache=model.prefill(params, inputs, length),
    )
    return jax.lax.while_loop(lambda state: (state.written < length) & ~state.ended_B.all(), step, first).ids_BT
