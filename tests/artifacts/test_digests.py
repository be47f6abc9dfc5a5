"""Checksums and digests of parameters change with any bit."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.artifacts.digests import checksums, params_digest


@settings(deadline=None)
@given(st.data())
def test_one_flipped_bit_changes_the_checksum(data):
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "int32", "uint8"]))
    shape = data.draw(st.sampled_from([(), (7,), (3, 5)]))
    array = np.asarray(jnp.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype))
    bits = array.copy().reshape(-1).view(np.uint8)
    bits[data.draw(st.integers(0, len(bits) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    flipped = bits.view(array.dtype).reshape(shape)
    assert int(checksums([array])[0]) != int(checksums([flipped])[0])


def test_digest_depends_on_names_shapes_dtypes_and_values():
    trees = [
        {"w": np.zeros((2, 3), np.float32)},
        {"v": np.zeros((2, 3), np.float32)},
        {"w": np.zeros((3, 2), np.float32)},
        {"w": np.zeros((2, 3), np.int32)},
        {"w": np.ones((2, 3), np.float32)},
    ]
    assert len({params_digest(tree) for tree in trees}) == len(trees)
    assert params_digest(trees[0]) == params_digest({"w": jnp.zeros((2, 3))})
