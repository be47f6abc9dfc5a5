"""Greedy decoding: identities with the teacher-forced model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.decoding.base import NO_TOKEN
from kd_jax.decoding.greedy import greedy
from tests.decoding.small_model import ENDS, EOS, LENGTH, MODEL, PARAMS, PROMPTS, SOURCES, logits_of


def test_greedy_is_the_argmax_of_the_teacher_forced_model():
    ids_BT = np.asarray(greedy(MODEL, PARAMS, PROMPTS, **ENDS))
    for source, ids_T in zip(SOURCES, ids_BT, strict=False):
        best_T = logits_of(source, [ids_T])[0].argmax(-1)
        ends = np.flatnonzero(ids_T == EOS)
        last = ends[0] + 1 if len(ends) else LENGTH
        assert ids_T[:last].tolist() == best_T[:last].tolist()
        assert (ids_T[last:] == NO_TOKEN).all()


def test_a_row_of_padding_has_no_tokens():
    assert (greedy(MODEL, PARAMS, PROMPTS, **ENDS)[-1] == NO_TOKEN).all()


def test_batches_of_one_shape_are_traced_once():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def write(params, inputs):
        return greedy(MODEL, params, inputs, **ENDS)

    for shift in range(3):
        write(PARAMS, jax.tree.map(lambda x, shift=shift: jnp.roll(x, shift, 0), PROMPTS))
