"""What every way of decoding shares."""

import jax.numpy as jnp
import numpy as np

from kd_jax.data.tokenizers.sentence_piece import START
from kd_jax.decoding.base import first_tokens, likeliest
from tests.decoding.searched import PROMPTS


def test_likeliest_is_argmax_ties_to_the_first():
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 4, (50, 9)), jnp.float32)
    np.testing.assert_array_equal(likeliest(logits), logits.argmax(-1))


def test_a_row_goes_on_from_its_last_token_and_one_that_fills_up_is_not_real():
    token_B, real_B = first_tokens(PROMPTS)
    assert token_B.tolist() == [START] * 4 + [0] and real_B.tolist() == [True] * 4 + [False]
