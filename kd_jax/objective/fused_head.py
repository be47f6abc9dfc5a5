"""The output layer and the objective in one pass over chunks of tokens.

The logits of a chunk exist only inside one step of a `lax.scan`. There the chunk's loss and its gradient with respect
to the logits are computed together, and the gradients are returned with the value. So there is no array of all logits
[N, V], nothing is computed twice, and any differentiable objective works.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models.base import Head
from kd_jax.runtime.chips import local_memory
from kd_jax.runtime.devices import row_shards, shard_map_rows
from kd_jax.runtime.target import is_for_cpu
from kd_jax.types import Array

# A chunk has enough tokens for an efficient matrix product, and its logits fit into the processor's caches.
CHUNK_TOKENS, CHUNK_BYTES = 512, 64 * 2**20
# On an accelerator, logits of a chunk take this share of its memory. There are about four such arrays at a time.
ACCELERATOR_TOKENS, ACCELERATOR_SHARE = 8192, 1 / 32
# XLA on CPU materialises a chunk's contribution to the kernel's gradient before it adds it. Above CHUNK_BYTES it is
# computed and added in strips of columns of this size, or it would dominate memory and traffic.
STRIP_BYTES = 32 * 2**20

# (logits_CV, tokens, shared) -> (scalar to differentiate, sums)
Objective = Callable[[Array, Any, Any], tuple[Array, Any]]


def chunk_tokens(num_tokens: int, vocab_size: int) -> int:
    """Return the number of tokens in a chunk.

    Chunks are of equal size, a multiple of 8. On CPU they have at most CHUNK_TOKENS tokens and CHUNK_BYTES of float32
    logits; on an accelerator the bytes are a share of its memory.
    """
    most_tokens, most_bytes = CHUNK_TOKENS, CHUNK_BYTES
    if not is_for_cpu():
        most_tokens, most_bytes = ACCELERATOR_TOKENS, int(ACCELERATOR_SHARE * local_memory())
    largest = max(8, min(most_tokens, most_bytes // (4 * vocab_size)))
    chunks = -(-num_tokens // largest)
    return min(num_tokens, -(-num_tokens // (8 * chunks)) * 8)


def whole_rows(rows: int, length: int, vocab_size: int) -> int:
    """Return the number of tokens in a chunk of whole rows, at least one of each device shard.

    Args:
      rows: of the batch.
      length: tokens of a row.
      vocab_size: number of logits of a token.
    """
    shards = _shards(rows * length)
    return shards * length * max(1, chunk_tokens(rows * length // shards, vocab_size) // length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def fused_head(
    objective: Objective, hidden_ND: Array, head: Head, tokens: Any, shared: Any = None, chunk: int = 0
) -> tuple[Array, Any]:
    r"""Compute an objective of the logits without materialising them.

    .. math:: \sum_c objective(head(hidden_c), tokens_c, shared)

    over chunks c of tokens. Only the hidden states and the head get gradients.

    Args:
      objective: pure function (logits_CV, tokens, shared) -> (loss to differentiate, pytree of sums), both sums over
        the tokens of a chunk of C. The last chunk is padded with zeros, so tokens whose mask is 0 must add nothing.
        It must not close over traced values: pass them in `shared`.
      hidden_ND: float [N, D], the hidden states.
      head: the output layer.
      tokens: pytree of [N, ...] arrays, the objective's inputs for each token, for example TokenInputs.
      shared: pytree, the objective's inputs for all tokens, for example StepInputs.
      chunk: number of tokens in a chunk; 0 for what the function `chunk_tokens` computes.

    Returns:
      (scalar, sums), each summed over the chunks.

    Examples:
      >>> hidden, head, mask = jnp.array([[1.0], [3.0]]), Head(jnp.array([[1.0, 2.0]])), jnp.array([1.0, 1.0])
      >>> def squares(logits, mask, _):  # of the logits [[1, 2], [3, 6]]
      ...     return (mask * (logits**2).sum(-1)).sum(), {"tokens": mask.sum()}
      >>> (value, sums), gradient = jax.value_and_grad(fused_head, 1, has_aux=True)(squares, hidden, head, mask)
      >>> value.item(), sums["tokens"].item(), gradient.tolist()
      (50.0, 2.0, [[10.0], [30.0]])
    """
    values = jax.lax.map(lambda x: objective(head.logits(x[0]), x[1], shared), _chunks(hidden_ND, head, tokens, chunk))
    return jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), values)


def _forward(objective, hidden_ND, head, tokens, shared, chunk):
    xs, kernel_DV = _chunks(hidden_ND, head, tokens, chunk), head.kernel_DV.astype(hidden_ND.dtype)
    cast_head = dataclasses.replace(head, kernel_DV=kernel_DV)

    def add_chunk(total, xs):
        hidden_CD, tokens_C = xs
        logits_CV, pull_back = jax.vjp(head.finish_logits, cast_head.raw_logits(hidden_CD), head.bias_V)
        value, d_logits_CV = jax.value_and_grad(objective, has_aux=True)(logits_CV, tokens_C, shared)
        d_raw_CV, d_bias_V = pull_back(d_logits_CV)
        d_raw_CV = d_raw_CV.astype(kernel_DV.dtype)
        d_hidden_CD = d_raw_CV @ kernel_DV.T
        if total is None:  # the first chunk
            return (value, _kernel_gradient(hidden_CD, d_raw_CV), d_bias_V), d_hidden_CD
        value, d_bias_V = jax.tree.map(jnp.add, (total[0], total[2]), (value, d_bias_V))
        return (value, _add_kernel_gradient(total[1], hidden_CD, d_raw_CV), d_bias_V), d_hidden_CD

    first = jax.tree.map(lambda x: x[0], xs)
    if xs[0].shape[0] == 1:
        total, d_hidden_CD = add_chunk(None, first)
        d_hidden = d_hidden_CD[None]
    else:
        shapes, _ = jax.eval_shape(add_chunk, None, first)
        total, d_hidden = jax.lax.scan(add_chunk, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), xs)
    value, d_kernel_DV, d_bias_V = total
    d_head = Head(d_kernel_DV, d_bias_V, head.soft_cap, head.vocab_size)
    d_hidden_ND = _join_chunks(d_hidden, hidden_ND.shape[0]).astype(hidden_ND.dtype)
    return value, (d_hidden_ND, jax.tree.map(lambda gradient, x: gradient.astype(x.dtype), d_head, head))


def _backward(objective, chunk, gradients, cotangents):
    scaled = jax.tree.map(lambda x: x * cotangents[0].astype(x.dtype), gradients)  # the sums are not differentiated
    return *scaled, None, None


fused_head.defvjp(_forward, _backward)


def _shards(num_tokens: int) -> int:
    """Return the number of device shards of the tokens. Every chunk takes its part from each shard."""
    return row_shards() if num_tokens % row_shards() == 0 else 1


def _chunks(hidden_ND: Array, head: Head, tokens: Any, chunk: int) -> tuple[Array, Any]:
    """Return (hidden, tokens) in chunks, each [chunks, C, ...], padded with zeros."""
    shards = _shards(hidden_ND.shape[0])
    per_shard = hidden_ND.shape[0] // shards
    chunk = min(chunk // shards, per_shard) or chunk_tokens(per_shard, head.kernel_DV.shape[1])

    def split(x: Array) -> Array:
        x = x.reshape(shards, per_shard, *x.shape[1:])
        padded = jnp.pad(x, [(0, 0), (0, -per_shard % chunk)] + [(0, 0)] * (x.ndim - 2))
        chunks = padded.reshape(shards, -1, chunk, *x.shape[2:]).swapaxes(0, 1)
        return chunks.reshape(-1, shards * chunk, *x.shape[2:])

    return jax.tree.map(split, (hidden_ND, tokens))


def _join_chunks(x: Array, num_tokens: int) -> Array:
    """Return chunks [chunks, C, ...] as [N, ...], without padding: the inverse of `_chunks`."""
    shards = _shards(num_tokens)
    x = x.reshape(x.shape[0], shards, -1, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(shards, -1, *x.shape[3:])[:, : num_tokens // shards].reshape(num_tokens, *x.shape[3:])


def _kernel_gradient(hidden_CD: Array, d_raw_CV: Array) -> Array:
    """Return hidden' d_raw [D, V], summed in float32."""
    return jnp.matmul(hidden_CD.T, d_raw_CV, preferred_element_type=jnp.float32)


def _add_kernel_gradient(total_DV: Array, hidden_CD: Array, d_raw_CV: Array) -> Array:
    """Return total + hidden' d_raw, on CPU in strips of columns if it is larger than CHUNK_BYTES."""
    width, vocab_size = total_DV.shape
    if 4 * width * vocab_size <= CHUNK_BYTES or not is_for_cpu():
        return total_DV + _kernel_gradient(hidden_CD, d_raw_CV)
    strip = min(vocab_size, max(1, STRIP_BYTES // (4 * width)))
    full_strips, remainder = divmod(vocab_size, strip)

    def add(start: Array | int, total_DV: Array, columns: int = strip) -> Array:
        columns_of = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=columns, axis=1)
        updated = columns_of(total_DV) + _kernel_gradient(hidden_CD, columns_of(d_raw_CV))
        return jax.lax.dynamic_update_slice_in_dim(total_DV, updated, start, 1)

    total_DV = jax.lax.fori_loop(0, full_strips, lambda i, total_DV: add(i * strip, total_DV), total_DV)
    return add(full_strips * strip, total_DV, remainder) if remainder else total_DV


def map_head(function: Callable[[Array, Any], Any], hidden_ND: Array, head: Head, tokens: Any = None) -> Any:
    """Apply a function to the logits of each token without materialising them all.

    Args:
      function: (logits_CV, tokens) -> pytree of arrays [C, ...]; each token's result depends on that token alone.
      hidden_ND: float [N, D], the hidden states.
      head: the output layer.
      tokens: pytree of [N, ...] arrays, the function's inputs for each token.

    Returns:
      The pytree with arrays [N, ...].

    Examples:
      >>> head = Head(jnp.array([[1.0, 2.0]]))
      >>> map_head(lambda logits, _: logits.argmax(-1), jnp.array([[1.0], [-1.0]]), head).tolist()
      [1, 0]
    """
    num_tokens = hidden_ND.shape[0]
    if _shards(num_tokens) > 1:
        function = shard_map_rows(function)
    mapped = jax.lax.map(lambda x: function(head.logits(x[0]), x[1]), _chunks(hidden_ND, head, tokens, 0))
    return jax.tree.map(lambda x: _join_chunks(x, num_tokens), mapped)
