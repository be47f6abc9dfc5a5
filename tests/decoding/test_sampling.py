"""Sampling: closed forms of each limit, frequencies, and texts that depend on nothing beside them."""

import functools

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.sampling import draw, penalise, sample, truncate
from kd_jax.models.base import Model
from kd_jax.tasks.base import Sampling
from kd_jax.types import Inputs, Tokens
from tests.decoding.searched import ENDS, EOS, MODEL, PARAMS, PROMPTS, SOURCES, logits_of

WARM = Sampling(temperature=1.0)
BIGRAMS = Model(*[None] * 4, prefill=lambda *_: (), extend=lambda table, cache, ids: (table[ids], cache))
truncated = jax.jit(truncate, static_argnums=1)


def log_of(*p):
    return jnp.log(jnp.array([p], jnp.float32))


def left_by(p, sampling):
    """Ids that may still be drawn."""
    return np.flatnonzero(np.isfinite(truncated(log_of(*p), sampling)[0])).tolist()


def tokens(ids_BT, segment_BT):
    return Tokens(jnp.array(ids_BT), jnp.zeros_like(jnp.array(ids_BT)), jnp.array(segment_BT))


def starts(index_B, first=0):
    """Prompts of one token each, decoder alone."""
    ids_B1 = np.full((len(index_B), 1), first)
    return Inputs(jnp.array(index_B), tokens(ids_B1, np.ones_like(ids_B1)), None)


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones():
    logits = jnp.array([[4.0, -4.0, 0.0, 3.0], [4.0, -4.0, 0.0, 3.0]])
    seen = jnp.array([[True, True, True, False], [False, False, False, True]])
    assert penalise(logits, seen, 2.0).tolist() == [[2.0, -8.0, 0.0, 3.0], [4.0, -4.0, 0.0, 1.5]]


def test_without_limits_the_logits_are_divided_by_the_temperature():
    logits = jnp.array([[4.0, -4.0, -jnp.inf]])
    assert truncated(logits, Sampling(temperature=2.0)).tolist() == [[2.0, -2.0, -np.inf]]


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(1.0, top_k=2), [1, 3]),
        (Sampling(1.0, top_k=9), [0, 1, 2, 3, 4]),
        (Sampling(1.0, min_p=0.3), [0, 1, 3]),  # at least 0.3 of 0.4
        (Sampling(1.0, top_p=0.65), [1, 3]),
        (Sampling(1.0, top_p=0.05), [1]),
        (Sampling(1.0, top_p=0.95), [0, 1, 2, 3]),
        (Sampling(1.0, top_k=2, top_p=0.56), [1]),  # 0.4 of the 0.7 that top_k left
        (Sampling(2.0, top_p=0.3, min_p=0.9), [1]),  # 0.31 by their square roots
        (Sampling(0.5, top_p=0.65), [1, 3]),  # 0.55 and 0.31 by their squares
        (Sampling(2.0, top_p=0.65), [0, 1, 3]),  # 0.31, 0.26 and 0.19
        (Sampling(2.0, min_p=0.3), [0, 1, 2, 3]),  # at least 0.09 of 0.4
    ],
)
def test_each_limit_by_hand(sampling, left):
    assert left_by((0.15, 0.4, 0.11, 0.3, 0.01), sampling) == left


def test_of_tokens_that_tie_the_first_are_left():
    fifths = (0.2,) * 5
    assert left_by(fifths, Sampling(1.0, top_k=2)) == [0, 1]
    assert left_by(fifths, Sampling(1.0, top_p=0.5)) == [0, 1, 2]
    assert left_by((0.1, 0.3, 0.1, 0.3, 0.1, 0.1), Sampling(1.0, top_k=4)) == [0, 1, 2, 3]
    assert left_by((0.1, 0.3, 0.1, 0.3, 0.1, 0.1), Sampling(1.0, top_p=0.75)) == [0, 1, 2, 3]


LOGITS = hnp.arrays(np.float32, (3, 12), elements=st.sampled_from([-np.inf, *np.arange(-20, 8, 0.5)]))


@given(LOGITS, st.sampled_from([0.1, 0.5, 0.9, 0.999]))
@settings(deadline=None)
def test_the_nucleus_reaches_top_p_with_the_fewest_tokens(logits_NV, top_p):
    logits_NV[:, 5] = 0.0  # something is possible
    left_NV = np.isfinite(truncated(logits_NV, Sampling(1.0, top_p=top_p)))
    for logits_V, left_V in zip(logits_NV.astype(np.float64), left_NV, strict=True):
        p_V = np.exp(logits_V) / np.exp(logits_V).sum()
        order = np.argsort(-p_V, kind="stable")
        count = left_V.sum()
        assert sorted(order[:count]) == np.flatnonzero(left_V).tolist()
        assert p_V[order[:count]].sum() >= top_p - 1e-6 and p_V[order[: count - 1]].sum() < top_p + 1e-6


@given(LOGITS, st.sampled_from([1, 3, 12]))
@settings(deadline=None)
def test_top_k_leaves_the_k_first_of_a_stable_sort(logits_NV, k):
    left_NV = np.isfinite(truncated(logits_NV, Sampling(1.0, top_k=k)))
    for logits_V, left_V in zip(logits_NV, left_NV, strict=True):
        order = np.argsort(-logits_V, kind="stable")[:k]
        assert np.flatnonzero(left_V).tolist() == sorted(i for i in order if np.isfinite(logits_V[i]))


@pytest.mark.parametrize("p", [(0.5, 0.0, 0.25, 0.125, 0.1, 0.025), (0.0, 0.001, 0.999, 0.0), (0.0, 0.0, 0.0, 1.0)])
def test_draws_are_as_frequent_as_they_are_likely(p):
    """Pearson's statistic of 20,000 draws: within 4 standard deviations of its mean. What is impossible never comes."""
    draws, p_V = 20_000, np.asarray(p)
    drawn = jax.jit(draw)(jax.random.split(jax.random.key(1), draws), jnp.repeat(log_of(*p), draws, axis=0))
    counts_V = np.bincount(drawn, minlength=len(p))
    assert not counts_V[p_V == 0].any()
    expected = draws * p_V[p_V > 0]
    freedom = len(expected) - 1
    assert (np.square(counts_V[p_V > 0] - expected) / expected).sum() <= freedom + 4 * np.sqrt(2 * freedom)


def test_cold_is_greedy_and_so_is_the_likeliest_alone():
    chosen = greedy(MODEL, PARAMS, PROMPTS, **ENDS)
    for sampling in (Sampling(), Sampling(temperature=3.0, top_k=1), Sampling(temperature=1.0, top_p=1e-6)):
        chex.assert_trees_all_equal(sample(MODEL, PARAMS, PROMPTS, sampling=sampling, **ENDS), chosen)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_first_tokens_are_drawn_from_the_tempered_softmax(temperature):
    """2000 copies of one prompt: each id's share lies within 4 standard deviations of its probability."""
    copies = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x[:1]), 2000, axis=0), PROMPTS)
    copies = copies._replace(index_B=jnp.arange(2000))
    drawn = sample(MODEL, PARAMS, copies, eos=EOS, length=1, sampling=Sampling(temperature))[:, 0]
    logits_V = np.asarray(logits_of(SOURCES[0], [[EOS]])[0, 0], np.float64) / temperature
    p_V = np.exp(logits_V) / np.exp(logits_V).sum()
    shares_V = np.bincount(drawn, minlength=len(p_V)) / 2000
    assert (np.abs(shares_V - p_V) <= 4 * np.sqrt(p_V * (1 - p_V) / 2000) + 1e-9).all()


def test_texts_depend_on_seed_and_example_alone():
    """Not on the place in the batch, on the batch, or on the number of devices."""
    table = jnp.zeros((7, 7))
    write = functools.partial(sample, BIGRAMS, eos=6, length=12, sampling=WARM)
    texts = write(table, starts([4, 9, 2, 7]))
    assert len({tuple(text) for text in texts.tolist()}) == 4
    chex.assert_trees_all_equal(write(table, starts([7, 2, 9, 4])), texts[::-1])
    chex.assert_trees_all_equal(write(table, starts([2])), texts[2:3])
    halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), starts([4, 9, 2, 7]))
    chex.assert_trees_all_equal(jax.pmap(write, in_axes=(None, 0))(table, halves).reshape(4, 12), texts)
    other = sample(BIGRAMS, table, starts([4, 9, 2, 7]), eos=6, length=12, sampling=Sampling(1.0, seed=1))
    assert (other != texts).any(1).all()


def test_each_position_is_a_draw_of_its_own():
    """Uniform over 50 ids: 400 texts of 2 tokens repeat the first with probability 1/50; mean 8, deviation 2.8."""
    ids_BT = sample(BIGRAMS, jnp.zeros((50, 50)), starts(range(400)), eos=50, length=2, sampling=WARM)
    assert 0 < (ids_BT[:, 0] == ids_BT[:, 1]).sum() <= 20


PROMPT = tokens([[2, 2, 5, 1]], [[0, 0, 1, 1]])  # id 2 is padding here, 5 the end
START = tokens([[2]], [[1]])


@pytest.mark.parametrize(
    "inputs",
    [Inputs(jnp.array([0]), PROMPT, None), Inputs(jnp.array([0]), START, PROMPT)],
    ids=["decoder-only", "encoder-decoder"],
)
def test_the_penalty_counts_the_prompt_and_what_was_written(inputs):
    """Not padding, a start token beside an encoder, nor the end: 1 falls to 2; 2, 3 and the end are larger."""
    table = jnp.tile(jnp.array([[0.1, 4.0, 3.5, 3.0, 0.2, 2.5]]), (6, 1))
    penalised = Sampling(repetition_penalty=2.0)
    assert sample(BIGRAMS, table, inputs, eos=5, length=6, sampling=penalised).tolist() == [[2, 3, 5, -1, -1, -1]]
    assert sample(BIGRAMS, table, inputs, eos=5, length=6, sampling=Sampling()).tolist() == [[1] * 6]


def test_a_penalty_bars_repetition_from_draws_too():
    """What stands in the prompt or was written has exp(-91) of the end's chance, so it comes no second time."""
    table = jnp.tile(jnp.array([[-1.0, -1.0, -1.0, -1.0, -9.0]]), (5, 1))
    harsh = Sampling(temperature=1.0, repetition_penalty=100.0)
    for text in sample(BIGRAMS, table, starts(range(20)), eos=4, length=5, sampling=harsh).tolist():
        words = text[: text.index(4)]
        assert len(set(words)) == len(words) and 0 not in words  # 0 is the prompt


def test_one_trace_serves_all_batches_of_a_shape():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def write(table, inputs):
        return sample(BIGRAMS, table, inputs, eos=6, length=4, sampling=WARM)

    for first in range(3):
        write(jnp.zeros((7, 7)), starts([first, 1]))
