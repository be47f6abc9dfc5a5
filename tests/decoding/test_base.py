"""What every way of decoding shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.decoding.base import argmax, first_tokens, top_k
from kd_jax.tokenizers.sentencepiece import START
from tests.decoding.searched import PROMPTS


def test_likeliest_is_argmax_ties_to_the_first():
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 4, (50, 9)), jnp.float32)
    np.testing.assert_array_equal(argmax(logits), logits.argmax(-1))


@pytest.mark.parametrize(("size", "k"), [(7, 3), (64, 1), (64, 64), (250, 8), (1001, 8), (4000, 32)])
@pytest.mark.parametrize("values", [3, 10**6], ids=["ties", "hardly any tie"])
def test_top_k_is_that_of_jax_also_where_values_tie(size, k, values):
    """Also where most of a row is barred."""
    logits_NV = np.random.default_rng(0).integers(-values, values, (20, size)).astype(np.float32)
    logits_NV[10:, k:] = -np.inf
    for ours, theirs in zip(jax.jit(top_k, static_argnums=1)(logits_NV, k), jax.lax.top_k(logits_NV, k), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_row_goes_on_from_its_last_token_and_one_that_fills_up_is_not_real():
    token_B, real_B = first_tokens(PROMPTS)
    assert token_B.tolist() == [START] * 4 + [0] and real_B.tolist() == [True] * 4 + [False]
