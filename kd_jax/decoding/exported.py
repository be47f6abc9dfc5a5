"""Greedy decoding as two compiled programs that need JAX alone: no Flax, no kd_jax, on any of the platforms."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from kd_jax.decoding.base import argmax, first_tokens, suppress
from kd_jax.models.base import Model
from kd_jax.types import Array, Inputs, Params, Tokens

PLATFORMS = ("cpu", "cuda", "tpu")
Leaves = tuple[Array, ...]


def programs(
    model: Model,
    params: Params,
    *,
    has_encoder: bool,
    start: int,
    width: int,
    room: int,
    forced_prefix: tuple[int, ...] = (),
    suppress_tokens: tuple[int, ...] = (),
) -> dict[str, bytes]:
    """The two halves of greedy decoding, serialised for all PLATFORMS; any number of rows.

        prefill(params, ids_BS, length_B) -> (token_B, cache)
        step(params, cache, token_B) -> (token_B, logits_BV, cache)

    params and cache are tuples of arrays; prefill's token is the one that step goes on from.

    Args:
      model, params: the network; of the parameters only shapes and types are used.
      has_encoder: whether prompts go to an encoder.
      start: the id that decoding begins with.
      width: S, padded length of the prompts, which stand on the left.
      room: the most tokens that can be written.
      forced_prefix, suppress_tokens: as the tokeniser's: ids that completions begin with, and that are never written.

    Returns:
      {"prefill": ..., "step": ...}, for `jax.export.deserialize`.
    """
    prefill, step = flat(suppress(model, suppress_tokens), params, has_encoder, (start, *forced_prefix), width, room)
    rows = export.symbolic_shape("rows")[0]
    leaves = tuple(jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in jax.tree.leaves(params))
    ids_BS, length_B = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows, width), (rows,)))
    first = export.export(jax.jit(prefill), platforms=PLATFORMS)(leaves, ids_BS, length_B)
    token_B, *cache = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in first.out_avals)
    following = export.export(jax.jit(step), platforms=PLATFORMS)(leaves, tuple(cache), token_B)
    return {"prefill": bytes(first.serialize()), "step": bytes(following.serialize())}


def flat(
    model: Model, params: Params, has_encoder: bool, begins: tuple[int, ...], width: int, room: int
) -> tuple[Callable[..., tuple[Array, Leaves]], Callable[..., tuple[Array, Array, Leaves]]]:
    """`prefill` and `step` of tuples, as `programs` has them: whoever loads them knows no class of ours."""

    def cache_of(params: Params, ids_BS: Array, length_B: Array) -> tuple[Array, Leaves]:
        inputs = prompts(ids_BS, length_B, has_encoder, begins)
        return first_tokens(inputs)[0], model.prefill(params, inputs, room)

    one = jnp.ones((1, width), jnp.int32), jnp.ones(1, jnp.int32)
    of_params, of_cache = jax.tree.structure(params), jax.tree.structure(jax.eval_shape(cache_of, params, *one)[1])

    def prefill(leaves: Leaves, ids_BS: Array, length_B: Array) -> tuple[Array, Leaves]:
        token_B, cache = cache_of(of_params.unflatten(leaves), ids_BS, length_B)
        return token_B, tuple(jax.tree.leaves(cache))

    def step(leaves: Leaves, cache: Leaves, token_B: Array) -> tuple[Array, Array, Leaves]:
        logits_BV, after = model.step(of_params.unflatten(leaves), of_cache.unflatten(cache), token_B)
        return argmax(logits_BV), logits_BV, tuple(jax.tree.leaves(after))

    return prefill, step


def prompts(ids_BS: Array, length_B: Array, has_encoder: bool, begins: tuple[int, ...]) -> Inputs:
    """As a layout's `prompts`, of padded rows, within a compiled program; `begins` with the start, then the forced_prefix.

    Examples:
      >>> inputs = prompts(jnp.array([[7, 8, 2, 0]]), jnp.array([3]), has_encoder=False, begins=(1,))
      >>> inputs.decoder.ids_BT.tolist(), inputs.decoder.position_BT.tolist()
      ([[0, 1, 7, 8, 2]], [[0, 0, 1, 2, 3]])
    """
    rows, width = ids_BS.shape
    index_B = jnp.full(rows, -1, jnp.int32)
    given_BT = jnp.broadcast_to(jnp.array(begins, jnp.int32), (rows, len(begins)))
    if has_encoder:
        place_BT = jnp.broadcast_to(jnp.arange(len(begins)), given_BT.shape)
        decoder = _tokens(given_BT, place_BT, jnp.full(rows, len(begins), jnp.int32))
        return Inputs(index_B, decoder, _tokens(ids_BS, jnp.broadcast_to(jnp.arange(width), (rows, width)), length_B))
    # On the left of the start token, the prompt and the forced_prefix is nothing: all rows go on from their last column.
    place_BT = jnp.arange(width + len(begins))[None] - (width - length_B)[:, None]
    prompt_BT = jnp.pad(ids_BS, ((0, 0), (1, len(begins) - 1)))
    ids_BT = jnp.take_along_axis(prompt_BT, jnp.maximum(place_BT, 0), axis=1)
    ids_BT = jnp.where(place_BT == 0, begins[0], ids_BT)
    ids_BT = ids_BT.at[:, width + 1 :].set(given_BT[:, 1:])
    return Inputs(index_B, _tokens(ids_BT, place_BT, length_B + len(begins)), None)


def _tokens(ids_BT: Array, place_BT: Array, length_B: Array) -> Tokens:
    """Tokens at the places from 0 on, as many as there are."""
    real_BT = (place_BT >= 0) & (place_BT < length_B[:, None])
    return Tokens(*(jnp.where(real_BT, x.astype(jnp.int32), 0) for x in (ids_BT, place_BT, real_BT)))
