"""Digests and checksums of parameters: digests on the host, checksums on the devices."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.types import Params


def params_digest(params: Params) -> str:
    """Return a digest of every parameter's name, shape, dtype and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@jax.jit
def checksums(tree: Any) -> list[jax.Array]:
    """Return the checksum of every leaf, a uint32 scalar; elements have one, two or four bytes.

    It is the sum of bits * (2 position + 1) over the elements, modulo 2^32. One flipped bit always changes it (an odd
    number times 2^b is not 0). It does not depend on the sharding of a leaf.
    """

    def checksum(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        position = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return (bits * (2 * position + 1)).sum(dtype=jnp.uint32)

    return [checksum(leaf) for leaf in jax.tree.leaves(tree)]
