"""Greedy decoding and sampling: identities with the teacher-forced model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.decoding.greedy import greedy, sample
from tests.decoding.searched import ENDS, EOS, LENGTH, MODEL, PARAMS, PROMPTS, SOURCES, logits_of


def test_greedy_is_the_argmax_of_the_teacher_forced_model():
    ids_BT = np.asarray(greedy(MODEL, PARAMS, PROMPTS, **ENDS))
    for source, ids_T in zip(SOURCES, ids_BT, strict=False):
        best_T = logits_of(source, [ids_T])[0].argmax(-1)
        ends = np.flatnonzero(ids_T == EOS)
        last = ends[0] + 1 if len(ends) else LENGTH
        assert ids_T[:last].tolist() == best_T[:last].tolist()
        assert not ids_T[last:].any()


def test_a_row_that_only_fills_up_writes_nothing():
    assert not greedy(MODEL, PARAMS, PROMPTS, **ENDS)[-1].any()


def test_sampling_cold_is_greedy_and_a_key_decides():
    cold = sample(MODEL, PARAMS, PROMPTS, jax.random.key(0), temperature=1e-4, **ENDS)
    chex.assert_trees_all_equal(cold, greedy(MODEL, PARAMS, PROMPTS, **ENDS))
    draws = [sample(MODEL, PARAMS, PROMPTS, jax.random.key(k), **ENDS) for k in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert not (draws[0] == draws[2]).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_first_tokens_are_drawn_from_the_tempered_softmax(temperature):
    """2000 copies of one prompt: each id's share lies within 4 standard deviations of its probability."""
    copies = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x[:1]), 2000, axis=0), PROMPTS)
    drawn = sample(MODEL, PARAMS, copies, jax.random.key(0), eos=EOS, length=1, temperature=temperature)[:, 0]
    logits_V = np.asarray(logits_of(SOURCES[0], [[EOS]])[0, 0], np.float64) / temperature
    p_V = np.exp(logits_V) / np.exp(logits_V).sum()
    shares_V = np.bincount(drawn, minlength=len(p_V)) / 2000
    assert (np.abs(shares_V - p_V) <= 4 * np.sqrt(p_V * (1 - p_V) / 2000) + 1e-9).all()


def test_one_trace_serves_all_batches_of_a_shape():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def translate(params, inputs):
        return greedy(MODEL, params, inputs, **ENDS)

    for shift in range(3):
        translate(PARAMS, jax.tree.map(lambda x, shift=shift: jnp.roll(x, shift, 0), PROMPTS))
