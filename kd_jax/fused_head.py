"""Hidden states, output matrix and objective in one pass over chunks of tokens.

The logits of a chunk live only inside one step of a `lax.scan`, where the chunk's loss and its gradient
with respect to those logits are taken together; d_hidden and d_head leave with the value. So there is
never an array [B, T, V], nothing is computed twice, and any differentiable objective fits.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.types import Array

# A chunk's logits are kept near this size: large enough for the matrix product, small enough for the caches.
CHUNK_BYTES = 32 * 2**20


def chunk_tokens(tokens: int, vocab_size: int) -> int:
    """Tokens in a chunk: CHUNK_BYTES of float32 logits, in equal chunks of whole 8s."""
    most = max(8, CHUNK_BYTES // (4 * vocab_size))
    chunks = -(-tokens // most)
    return min(tokens, -(-tokens // (8 * chunks)) * 8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused_head(objective: Callable[[Array, Any], tuple[Array, Any]], hidden_ND: Array, head_DV: Array, rows: Any):
    """sum over chunks of objective(hidden @ head, rows).

    Args:
      objective: pure (logits_NV, rows) -> (scalar to differentiate, further sums as a pytree). It must
        be a sum over tokens.
        Rows that only fill up the last chunk are all zeros, so their mask must be among the rows.
      hidden_ND: float [N, D].
      head_DV: float [D, V].
      rows: pytree of [N, ...] arrays, what the objective needs for each token; not differentiated.

    Returns:
      (scalar, sums), float32, each added over the chunks.
    """
    return _scan(objective, hidden_ND, head_DV, rows, gradient=False)[0]


def _forward(objective, hidden_ND, head_DV, rows):
    return _scan(objective, hidden_ND, head_DV, rows, gradient=True)


def _backward(objective, gradients, cotangents):
    scale = cotangents[0]  # the further sums are not differentiated
    d_hidden_ND, d_head_DV = gradients
    return d_hidden_ND * scale.astype(d_hidden_ND.dtype), d_head_DV * scale.astype(d_head_DV.dtype), None


fused_head.defvjp(_forward, _backward)


def _scan(objective, hidden_ND, head_DV, rows, gradient: bool):
    """((scalar, sums), (d_hidden_ND, d_head_DV) or None)."""
    tokens, chunk = hidden_ND.shape[0], chunk_tokens(hidden_ND.shape[0], head_DV.shape[1])
    chunks = -(-tokens // chunk)

    def split(x):
        filled = jnp.pad(x, [(0, chunks * chunk - tokens)] + [(0, 0)] * (x.ndim - 1))
        return filled.reshape(chunks, chunk, *x.shape[1:])

    def one(hidden_CD, rows_C):
        logits_CV = jnp.matmul(hidden_CD, head_DV, preferred_element_type=jnp.float32)
        if not gradient:
            return objective(logits_CV, rows_C), ()
        value, d_logits_CV = jax.value_and_grad(objective, has_aux=True)(logits_CV, rows_C)
        d_logits_CV = d_logits_CV.astype(head_DV.dtype)
        d_hidden_CD = d_logits_CV @ head_DV.T
        d_head_DV = jnp.matmul(hidden_CD.T, d_logits_CV, preferred_element_type=jnp.float32)
        return value, (d_hidden_CD, d_head_DV)

    if chunks == 1:
        value, gradients = one(hidden_ND, rows)
        return value, gradients or None

    def step(total, xs):
        value, gradients = one(*xs)
        d_hidden_CD, d_head_DV = gradients or ((), ())
        return jax.tree.map(jnp.add, total, (value, d_head_DV)), d_hidden_CD

    xs = jax.tree.map(split, (hidden_ND, rows))
    shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], xs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][1] if gradient else ()))
    (value, d_head_DV), d_hidden = jax.lax.scan(step, zeros, xs)
    if not gradient:
        return value, None
    return value, (d_hidden.reshape(-1, hidden_ND.shape[1])[:tokens], d_head_DV.astype(head_DV.dtype))


def map_head(function: Callable[[Array], Any], hidden_ND: Array, head_DV: Array) -> Any:
    """function(hidden @ head) for each chunk of tokens, never with an array [N, V].

    Args:
      function: logits [C, V] to a pytree of arrays [C, ...].
      hidden_ND: float [N, D].
      head_DV: float [D, V].

    Returns:
      The pytree with arrays [N, ...].
    """
    tokens, chunk = hidden_ND.shape[0], chunk_tokens(hidden_ND.shape[0], head_DV.shape[1])
    filled = jnp.pad(hidden_ND, [(0, -tokens % chunk), (0, 0)]).reshape(-1, chunk, hidden_ND.shape[1])
    logits = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    mapped = jax.lax.map(lambda hidden_CD: function(logits(hidden_CD, head_DV)), filled)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:tokens], mapped)
