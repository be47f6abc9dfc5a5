"""Hidden states, output matrix and objective in one pass over chunks of tokens.

The logits of a chunk live only inside one step of a `lax.scan`, where the chunk's loss and its gradient
with respect to those logits are taken together; the gradients leave with the value. So there is never an
array [B, T, V], nothing is computed twice, and any differentiable objective fits.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.types import Array, Head

# A chunk's logits are kept near this size: large enough for the matrix product, small enough for the caches.
CHUNK_BYTES = 64 * 2**20
# A chunk's share of the matrix's gradient is a product that XLA makes before it adds it. Where that is larger than the
# chunk's logits it is made and added in strips of columns of this size, or it would be most of the memory and traffic.
STRIP_BYTES = 32 * 2**20

Objective = Callable[[Array, Any, Any], tuple[Array, Any]]


def chunk_tokens(tokens: int, vocab_size: int) -> int:
    """Tokens in a chunk: CHUNK_BYTES of float32 logits, in equal chunks of whole 8s."""
    most = max(8, CHUNK_BYTES // (4 * vocab_size))
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
    """
    return _scan(objective, hidden_ND, head, rows, fixed, chunk, gradient=False)[0]


def _forward(objective, hidden_ND, head, rows, fixed, chunk):
    return _scan(objective, hidden_ND, head, rows, fixed, chunk, gradient=True)


def _backward(objective, chunk, gradients, cotangents):
    scaled = jax.tree.map(lambda x: x * cotangents[0].astype(x.dtype), gradients)  # the sums are not differentiated
    return *scaled, None, None


fused_head.defvjp(_forward, _backward)


def _scan(objective: Objective, hidden_ND: Array, head: Head, rows: Any, fixed: Any, chunk: int, gradient: bool):
    """((scalar, sums), (d_hidden_ND, d_head) or None)."""
    tokens, width = hidden_ND.shape
    chunk = min(chunk, tokens) or chunk_tokens(tokens, head.kernel_DV.shape[1])
    chunks = -(-tokens // chunk)

    def split(x):
        filled = jnp.pad(x, [(0, chunks * chunk - tokens)] + [(0, 0)] * (x.ndim - 1))
        return filled.reshape(chunks, chunk, *x.shape[1:])

    def one(hidden_CD, rows_C):
        raw_CV = head.raw(hidden_CD)
        finished = lambda raw_CV, bias_V: objective(head.finish(raw_CV, bias_V), rows_C, fixed)  # noqa: E731
        if not gradient:
            return finished(raw_CV, head.bias_V), ()
        value_and_grad = jax.value_and_grad(finished, (0, 1), has_aux=True)
        value, (d_raw_CV, d_bias_V) = value_and_grad(raw_CV, head.bias_V)
        d_raw_CV = d_raw_CV.astype(head.kernel_DV.dtype)
        return value, (d_raw_CV @ head.kernel_DV.T, (hidden_CD, d_raw_CV), d_bias_V)

    def whole(d_hidden_ND, d_kernel_DV, d_bias_V):
        return d_hidden_ND.astype(hidden_ND.dtype), jax.tree.map(
            lambda gradient, x: gradient.astype(x.dtype),
            Head(d_kernel_DV, d_bias_V, head.soft_cap, head.vocab_size),
            head,
        )

    if chunks == 1:
        value, gradients = one(hidden_ND, rows)
        return value, whole(gradients[0], _outer(*gradients[1]), gradients[2]) if gradient else None

    def step(total, xs):
        value, gradients = one(*xs)
        if not gradient:
            return (jax.tree.map(jnp.add, total[0], value), None, None), None
        d_hidden_CD, factors, d_bias_V = gradients
        value, d_bias_V = jax.tree.map(jnp.add, (total[0], total[2]), (value, d_bias_V))
        return (value, _add_outer(total[1], *factors), d_bias_V), d_hidden_CD

    xs = jax.tree.map(split, (hidden_ND, rows))
    value, gradients = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], xs))
    kernel = jax.ShapeDtypeStruct(head.kernel_DV.shape, jnp.float32)
    shapes = (value, kernel, gradients[2]) if gradient else (value, None, None)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (value, *d_head), d_hidden = jax.lax.scan(step, zeros, xs)
    return value, whole(d_hidden.reshape(-1, width)[:tokens], *d_head) if gradient else None


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
    """
    tokens, chunk = hidden_ND.shape[0], chunk_tokens(hidden_ND.shape[0], head.kernel_DV.shape[1])

    def split(x):
        filled = jnp.pad(x, [(0, -tokens % chunk)] + [(0, 0)] * (x.ndim - 1))
        return filled.reshape(-1, chunk, *x.shape[1:])

    chunks = jax.tree.map(split, (hidden_ND, rows))
    mapped = jax.lax.map(lambda x: function(head.logits(x[0]), x[1]), chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:tokens], mapped)
