"""Greedy decoding as two compiled programs that need only JAX, on any platform."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from kd_jax.decoding.base import last_prompt_tokens, suppress
from kd_jax.decoding.vocabulary import argmax
from kd_jax.models.base import Model
from kd_jax.runtime.target import lowering_for
from kd_jax.types import Array, Inputs, Params, Tokens

PLATFORMS = ("cpu", "cuda", "tpu")
Leaves = tuple[Array, ...]


def export_programs(
    model: Model,
    params: Params,
    *,
    has_encoder: bool,
    start: int,
    prompt_length: int,
    max_length: int,
    forced_prefix: tuple[int, ...] = (),
    suppress_tokens: tuple[int, ...] = (),
) -> dict[str, bytes]:
    """Serialise the two programs of greedy decoding for all PLATFORMS and any number of rows.

        prefill(params, ids_BS, length_B) -> (token_B, cache)
        step(params, cache, token_B) -> (token_B, logits_BV, cache)

    `params` and `cache` are tuples of arrays. The token of `prefill` is the first input of `step`.
    Of `params` only shapes and dtypes are used. Prompts are left-aligned and padded to `prompt_length` = S.

    Returns:
      {"prefill": ..., "step": ...}, for `jax.export.deserialize`.
    """
    model, prefix = suppress(model, suppress_tokens), (start, *forced_prefix)
    prefill, step = flat_functions(model, params, has_encoder, prefix, prompt_length, max_length)
    rows = export.symbolic_shape("rows")[0]
    leaves = tuple(jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in jax.tree.leaves(params))
    ids_BS, length_B = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows, prompt_length), (rows,)))
    with lowering_for("any"):
        prefill_program = export.export(jax.jit(prefill), platforms=PLATFORMS)(leaves, ids_BS, length_B)
    token_B, *cache = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in prefill_program.out_avals)
    with lowering_for("any"):
        step_program = export.export(jax.jit(step), platforms=PLATFORMS)(leaves, tuple(cache), token_B)
    return {"prefill": bytes(prefill_program.serialize()), "step": bytes(step_program.serialize())}


def flat_functions(
    model: Model, params: Params, has_encoder: bool, prefix: tuple[int, ...], prompt_length: int, max_length: int
) -> tuple[Callable[..., tuple[Array, Leaves]], Callable[..., tuple[Array, Array, Leaves]]]:
    """Return `prefill` and `step` of tuples of arrays, so that no class of kd_jax is needed to call them.

    Of `params` only the structure is used. `prefix` holds the start token and the forced prefix.
    """

    def prefill_tree(params: Params, ids_BS: Array, length_B: Array) -> tuple[Array, chex.ArrayTree]:
        inputs = prompts(ids_BS, length_B, has_encoder, prefix)
        return last_prompt_tokens(inputs)[0], model.prefill(params, inputs, max_length)

    one_prompt = jnp.ones((1, prompt_length), jnp.int32), jnp.ones(1, jnp.int32)
    params_tree = jax.tree.structure(params)
    cache_tree = jax.tree.structure(jax.eval_shape(prefill_tree, params, *one_prompt)[1])

    def prefill(leaves: Leaves, ids_BS: Array, length_B: Array) -> tuple[Array, Leaves]:
        token_B, cache = prefill_tree(params_tree.unflatten(leaves), ids_BS, length_B)
        return token_B, tuple(jax.tree.leaves(cache))

    def step(leaves: Leaves, cache: Leaves, token_B: Array) -> tuple[Array, Array, Leaves]:
        logits_BV, new_cache = model.step(params_tree.unflatten(leaves), cache_tree.unflatten(cache), token_B)
        return argmax(logits_BV), logits_BV, tuple(jax.tree.leaves(new_cache))

    return prefill, step


def prompts(ids_BS: Array, length_B: Array, has_encoder: bool, prefix: tuple[int, ...]) -> Inputs:
    """Return the inputs of left-aligned prompts, as a layout's `prompts`, inside a compiled program."""
    rows, prompt_length = ids_BS.shape
    index_B = jnp.full(rows, -1, jnp.int32)
    prefix_BT = jnp.broadcast_to(jnp.array(prefix, jnp.int32), (rows, len(prefix)))
    if has_encoder:
        position_BT = jnp.broadcast_to(jnp.arange(len(prefix)), prefix_BT.shape)
        decoder = _tokens(prefix_BT, position_BT, jnp.full(rows, len(prefix), jnp.int32))
        position_BS = jnp.broadcast_to(jnp.arange(prompt_length), (rows, prompt_length))
        return Inputs(index_B, decoder, _tokens(ids_BS, position_BS, length_B))
    # Rows are right-aligned: padding, start token, prompt, forced prefix. All of them continue after the last column.
    position_BT = jnp.arange(prompt_length + len(prefix))[None] - (prompt_length - length_B)[:, None]
    shifted_BT = jnp.pad(ids_BS, ((0, 0), (1, len(prefix) - 1)))
    ids_BT = jnp.take_along_axis(shifted_BT, jnp.maximum(position_BT, 0), axis=1)
    ids_BT = jnp.where(position_BT == 0, prefix[0], ids_BT)
    ids_BT = ids_BT.at[:, prompt_length + 1 :].set(prefix_BT[:, 1:])
    return Inputs(index_B, _tokens(ids_BT, position_BT, length_B + len(prefix)), None)


def _tokens(ids_BT: Array, position_BT: Array, length_B: Array) -> Tokens:
    """Return the tokens at positions from 0 to each row's length; the rest is padding."""
    is_real_BT = (position_BT >= 0) & (position_BT < length_B[:, None])
    ids_BT, position_BT, segment_BT = (
        jnp.where(is_real_BT, x.astype(jnp.int32), 0) for x in (ids_BT, position_BT, is_real_BT)
    )
    return Tokens(ids_BT, position_BT, segment_BT)
