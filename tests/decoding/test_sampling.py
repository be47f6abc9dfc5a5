"""Sampling: closed forms of each limit, frequencies, and independence of the batch."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.rules import penalise_repetition
from kd_jax.decoding.sampling import sample, truncate
from kd_jax.models.base import Model
from kd_jax.tasks.base import Sampling
from kd_jax.types import Inputs, Tokens
from tests.decoding.small_model import ENDS, EOS, MODEL, PARAMS, PROMPTS, SOURCES, logits_of

WARM = Sampling(temperature=1.0)
BIGRAMS = Model(*[None] * 4, prefill=lambda *_: (), extend=lambda table, cache, ids: (table[ids], cache))
jitted_truncate = jax.jit(truncate, static_argnums=1)


def log_of(*p):
    return jnp.log(jnp.array([p], jnp.float32))


def possible_ids(p, sampling):
    """Return the ids that can be drawn."""
    return np.flatnonzero(np.isfinite(jitted_truncate(log_of(*p), sampling)[0])).tolist()


def tokens(ids_BT, segment_BT):
    return Tokens(jnp.array(ids_BT), jnp.zeros_like(jnp.array(ids_BT)), jnp.array(segment_BT))


def starts(index_B, first=0):
    """Return decoder-only prompts of one token."""
    ids_B1 = np.full((len(index_B), 1), first)
    return Inputs(jnp.array(index_B), tokens(ids_B1, np.ones_like(ids_B1)), None)


def test_the_penalty_by_hand():
    logits = jnp.array([[4.0, -4.0, 0.0, 3.0], [4.0, -4.0, 0.0, 3.0]])
    seen = jnp.array([[True, True, True, False], [False, False, False, True]])
    assert penalise_repetition(logits, seen, 2.0).tolist() == [[2.0, -8.0, 0.0, 3.0], [4.0, -4.0, 0.0, 1.5]]


def test_without_limits_logits_are_divided_by_the_temperature():
    logits = jnp.array([[4.0, -4.0, -jnp.inf]])
    assert jitted_truncate(logits, Sampling(temperature=2.0)).tolist() == [[2.0, -2.0, -np.inf]]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0, top_k=2), [1, 3]),
        (Sampling(1.0, top_k=9), [0, 1, 2, 3, 4]),
        (Sampling(1.0, min_p=0.3), [0, 1, 3]),  # at least 0.3 of 0.4
        (Sampling(1.0, top_p=0.65), [1, 3]),
        (Sampling(1.0, top_p=0.05), [1]),
        (Sampling(1.0, top_p=0.95), [0, 1, 2, 3]),
        (Sampling(1.0, top_k=2, top_p=0.56), [1]),  # 0.4 of the 0.7 after top_k
        (Sampling(2.0, top_p=0.3, min_p=0.9), [1]),  # 0.31 by their square roots
        (Sampling(0.5, top_p=0.65), [1, 3]),  # 0.55 and 0.31 by their squares
        (Sampling(2.0, top_p=0.65), [0, 1, 3]),  # 0.31, 0.26 and 0.19
        (Sampling(2.0, min_p=0.3), [0, 1, 2, 3]),  # at least 0.09 of 0.4
    ],
)
def test_each_limit_by_hand(sampling, expected):
    assert possible_ids((0.15, 0.4, 0.11, 0.3, 0.01), sampling) == expected


def test_of_ties_the_first_remain():
    fifths = (0.2,) * 5
    assert possible_ids(fifths, Sampling(1.0, top_k=2)) == [0, 1]
    assert possible_ids(fifths, Sampling(1.0, top_p=0.5)) == [0, 1, 2]
    assert possible_ids((0.1, 0.3, 0.1, 0.3, 0.1, 0.1), Sampling(1.0, top_k=4)) == [0, 1, 2, 3]
    assert possible_ids((0.1, 0.3, 0.1, 0.3, 0.1, 0.1), Sampling(1.0, top_p=0.75)) == [0, 1, 2, 3]


def test_temperature_0_and_the_tightest_limits_are_greedy():
    expected = greedy(MODEL, PARAMS, PROMPTS, **ENDS)
    for sampling in (Sampling(), Sampling(temperature=3.0, top_k=1), Sampling(temperature=1.0, top_p=1e-6)):
        chex.assert_trees_all_equal(sample(MODEL, PARAMS, PROMPTS, sampling=sampling, **ENDS), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_first_tokens_are_drawn_from_the_tempered_softmax(temperature):
    """2000 copies of one prompt: each id's share is within 4 standard deviations of its probability."""
    copies = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x[:1]), 2000, axis=0), PROMPTS)
    copies = copies._replace(index_B=jnp.arange(2000))
    drawn = sample(MODEL, PARAMS, copies, eos=EOS, length=1, sampling=Sampling(temperature))[:, 0]
    logits_V = np.asarray(logits_of(SOURCES[0], [[EOS]])[0, 0], np.float64) / temperature
    p_V = np.exp(logits_V) / np.exp(logits_V).sum()
    shares_V = np.bincount(drawn, minlength=len(p_V)) / 2000
    assert (np.abs(shares_V - p_V) <= 4 * np.sqrt(p_V * (1 - p_V) / 2000) + 1e-9).all()


def test_texts_depend_only_on_seed_and_example():
    """They do not depend on the row, the batch or the number of devices."""
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


def test_positions_are_drawn_independently():
    """Uniform over 50 ids: 400 texts of 2 tokens repeat the first with probability 1/50; mean 8, deviation 2.8."""
    ids_BT = sample(BIGRAMS, jnp.zeros((50, 50)), starts(range(400)), eos=50, length=2, sampling=WARM)
    assert 0 < (ids_BT[:, 0] == ids_BT[:, 1]).sum() <= 20


PROMPT = tokens([[2, 2, 5, 1]], [[0, 0, 1, 1]])  # id 2 is padding here, 5 the end
START = tokens([[2]], [[1]])


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (Inputs(jnp.array([0]), PROMPT, None), [2, 3, 1, 1, 1, 1]),  # 5 and 1 are in the prompt, 2 is padding
        (Inputs(jnp.array([0]), START, PROMPT), [1, 3, 5, -1, -1, -1]),  # 2 is the start, 1 and 5 in the source alone
    ],
    ids=["decoder-only", "encoder-decoder"],
)
def test_the_penalty_counts_the_tokens_of_the_decoder(inputs, expected):
    """As in transformers: without padding and source, with prompt, start and end. Seen logits are halved."""
    table = jnp.tile(jnp.array([[0.1, 4.0, 3.5, 3.0, 0.2, 2.5]]), (6, 1))
    with_penalty = Sampling(repetition_penalty=2.0)
    assert sample(BIGRAMS, table, inputs, eos=5, length=6, sampling=with_penalty).tolist() == [expected]
    assert sample(BIGRAMS, table, inputs, eos=5, length=6, sampling=Sampling()).tolist() == [[1] * 6]


def test_the_penalty_prevents_repetition_in_draws():
    """Seen tokens have exp(-91) times the probability of the end, so none is repeated."""
    table = jnp.tile(jnp.array([[-1.0, -1.0, -1.0, -1.0, -9.0]]), (5, 1))
    harsh = Sampling(temperature=1.0, repetition_penalty=100.0)
    for text in sample(BIGRAMS, table, starts(range(20)), eos=4, length=5, sampling=harsh).tolist():
        words = text[: text.index(4)]
        assert len(set(words)) == len(words) and 0 not in words  # 0 is the prompt


def test_batches_of_one_shape_are_traced_once():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def write(table, inputs):
        return sample(BIGRAMS, table, inputs, eos=6, length=4, sampling=WARM)

    for first in range(3):
        write(jnp.zeros((7, 7)), starts([first, 1]))


def test_min_p_keeps_all_tokens_at_its_limit():
    logits = jnp.asarray([[1.0, 3.0, 3.0, 2.0]])
    assert jnp.isfinite(truncate(logits, Sampling(temperature=1.0, min_p=1.0))).tolist() == [[False, True, True, False]]
