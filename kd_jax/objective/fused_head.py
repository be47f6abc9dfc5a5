"""Hidden states, output matrix and objective in one pass over chunks of tokens.

The logits of a chunk live only inside one step of a `lax.scan`, where the chunk's loss and its gradient
with respect to those logits are taken together; the gradients leave with the value. So there is never an
array [B, T, V], nothing is computed twice, and any differentiable objective fits.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models.base import Head
from kd_jax.runtime.devices import shard_map_rows, row_shards
from kd_jax.types import Array

# Tokens of a chunk: enough for the matrix product, few enough for the caches; and the most bytes of its logits.
CHUNK_TOKENS, CHUNK_BYTES = 512, 64 * 2**20
# A chunk's share of the matrix's gradient is a product that XLA makes before it adds it. Where that is larger than the
# chunk's logits it is made and added in strips of columns of this size, or it would be most of the memory and traffic.
STRIP_BYTES = 32 * 2**20

Objective = Callable[[Array, Any, Any], tuple[Array, Any]]


def chunk_tokens(tokens: int, vocab_size: int) -> int:
    """Tokens in a chunk: CHUNK_TOKENS, or CHUNK_BYTES of float32 logits, in equal chunks of whole 8s."""
    most = max(8, min(CHUNK_TOKENS, CHUNK_BYTES // (4 * vocab_size)))
    chunks = -(-tokens // most)
    return min(tokens, -(-tokens // (8 * chunks)) * 8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def fused_head(objective: Objective, hidden_ND: Array, head: Head, rows: Any, fixed: Any = None, chunk: int = 0):
    """sum over chunks of objective(head.logits(hidden), rows, fixed).

    Args:
      objective: pure (logits_CV, rows, fixed) -> (scalar to differentiate, further sums as a pytree). It
        must be a sum over tokens, and it closes over no traced value.
        Rows that only fill up the last chunk are all zeros, so their mask must be among the rows.
      hidden_ND: float [N, D].
      head: the output layer; its kernel and bias get gradients.
      rows: pytree of [N, ...] arrays, what the objective needs for each token; not differentiated.
      fixed: pytree, what it needs for all tokens alike (a teacher's head); not differentiated.
      chunk: tokens at once; 0 for `chunk_tokens`.

    Returns:
      (scalar, sums), float32, each added over the chunks.

    Examples:
      >>> hidden, head, mask = jnp.array([[1.0], [3.0]]), Head(jnp.array([[1.0, 2.0]])), jnp.array([1.0, 1.0])
      >>> def squares(logits, mask, _):  # of the logits [[1, 2], [3, 6]]
      ...     return (mask * (logits**2).sum(-1)).sum(), {"tokens": mask.sum()}
      >>> (value, sums), gradient = jax.value_and_grad(fused_head, 1, has_aux=True)(squares, hidden, head, mask)
      >>> value.item(), sums["tokens"].item(), gradient.tolist()
      (50.0, 2.0, [[10.0], [30.0]])
    """
    values = jax.lax.map(lambda x: objective(head.logits(x[0]), x[1], fixed), _chunks(hidden_ND, head, rows, chunk))
    return jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), values)


def _forward(objective, hidden_ND, head, rows, fixed, chunk):
    xs, kernel_DV = _chunks(hidden_ND, head, rows, chunk), head.kernel_DV.astype(hidden_ND.dtype)
    as_hidden = dataclasses.replace(head, kernel_DV=kernel_DV)

    def add_chunk(total, xs):
        hidden_CD, rows_C = xs
        logits_CV, pull_back = jax.vjp(head.finish_logits, as_hidden.raw_logits(hidden_CD), head.bias_V)
        value, d_logits_CV = jax.value_and_grad(objective, has_aux=True)(logits_CV, rows_C, fixed)
        d_raw_CV, d_bias_V = pull_back(d_logits_CV)
        d_raw_CV = d_raw_CV.astype(kernel_DV.dtype)
        d_hidden_CD = d_raw_CV @ kernel_DV.T
        if total is None:  # of the first chunk
            return (value, _outer(hidden_CD, d_raw_CV), d_bias_V), d_hidden_CD
        value, d_bias_V = jax.tree.map(jnp.add, (total[0], total[2]), (value, d_bias_V))
        return (value, _add_outer(total[1], hidden_CD, d_raw_CV), d_bias_V), d_hidden_CD

    first = jax.tree.map(lambda x: x[0], xs)
    if xs[0].shape[0] == 1:
        total, d_hidden_CD = add_chunk(None, first)
        d_hidden = d_hidden_CD[None]
    else:
        shapes, _ = jax.eval_shape(add_chunk, None, first)
        total, d_hidden = jax.lax.scan(add_chunk, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), xs)
    value, d_kernel_DV, d_bias_V = total
    d_head = Head(d_kernel_DV, d_bias_V, head.soft_cap, head.vocab_size)
    d_hidden_ND = _unchunked(d_hidden, hidden_ND.shape[0]).astype(hidden_ND.dtype)
    return value, (d_hidden_ND, jax.tree.map(lambda gradient, x: gradient.astype(x.dtype), d_head, head))


def _backward(objective, chunk, gradients, cotangents):
    scaled = jax.tree.map(lambda x: x * cotangents[0].astype(x.dtype), gradients)  # the sums are not differentiated
    return *scaled, None, None


fused_head.defvjp(_forward, _backward)


def _shards(tokens: int) -> int:
    """Portions of the tokens that lie on devices of their own. Every chunk has some of each, and each its own chunk."""
    return row_shards() if tokens % row_shards() == 0 else 1


def _chunks(hidden_ND: Array, head: Head, rows: Any, chunk: int) -> tuple[Array, Any]:
    """(hidden, rows), each [chunks, C, ...]."""
    shards = _shards(hidden_ND.shape[0])
    each = hidden_ND.shape[0] // shards
    chunk = min(chunk // shards, each) or chunk_tokens(each, head.kernel_DV.shape[1])

    def split(x):
        x = x.reshape(shards, each, *x.shape[1:])
        filled = jnp.pad(x, [(0, 0), (0, -each % chunk)] + [(0, 0)] * (x.ndim - 2))
        chunks = filled.reshape(shards, -1, chunk, *x.shape[2:]).swapaxes(0, 1)
        return chunks.reshape(-1, shards * chunk, *x.shape[2:])

    return jax.tree.map(split, (hidden_ND, rows))


def _unchunked(x: Array, tokens: int) -> Array:
    """The inverse: [chunks, C, ...] to [N, ...]."""
    shards = _shards(tokens)
    x = x.reshape(x.shape[0], shards, -1, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(shards, -1, *x.shape[3:])[:, : tokens // shards].reshape(tokens, *x.shape[3:])


def _outer(hidden_CD: Array, d_raw_CV: Array) -> Array:
    """hidden' d_raw, summed in float32."""
    return jnp.matmul(hidden_CD.T, d_raw_CV, preferred_element_type=jnp.float32)


def _add_outer(total_DV: Array, hidden_CD: Array, d_raw_CV: Array) -> Array:
    """total + hidden' d_raw; in strips of columns where the whole is larger than CHUNK_BYTES."""
    width, vocab_size = total_DV.shape
    if 4 * width * vocab_size <= CHUNK_BYTES:
        return total_DV + _outer(hidden_CD, d_raw_CV)
    strip = min(vocab_size, max(1, STRIP_BYTES // (4 * width)))
    whole, left = divmod(vocab_size, strip)

    def add(start: Array | int, total_DV: Array, columns: int = strip) -> Array:
        at = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=columns, axis=1)
        added = at(total_DV) + _outer(hidden_CD, at(d_raw_CV))
        return jax.lax.dynamic_update_slice_in_dim(total_DV, added, start, 1)

    total_DV = jax.lax.fori_loop(0, whole, lambda i, total_DV: add(i * strip, total_DV), total_DV)
    return add(whole * strip, total_DV, left) if left else total_DV


def map_head(function: Callable[[Array, Any], Any], hidden_ND: Array, head: Head, rows: Any = None) -> Any:
    """function(head.logits(hidden), rows) for each chunk of tokens, never with an array [N, V].

    Args:
      function: (logits [C, V], rows [C, ...]) to a pytree of arrays [C, ...].
      hidden_ND: float [N, D].
      head: the output layer.
      rows: pytree of [N, ...] arrays.

    Returns:
      The pytree with arrays [N, ...].

    Examples:
      >>> head = Head(jnp.array([[1.0, 2.0]]))
      >>> map_head(lambda logits, _: logits.argmax(-1), jnp.array([[1.0], [-1.0]]), head).tolist()
      [1, 0]
    """
    tokens = hidden_ND.shape[0]
    chunks = _chunks(hidden_ND, head, rows, 0)
    own = shard_map_rows(function) if _shards(tokens) > 1 else function
    mapped = jax.lax.map(lambda x: own(head.logits(x[0]), x[1]), chunks)
    return jax.tree.map(lambda x: _unchunked(x, tokens), mapped)
