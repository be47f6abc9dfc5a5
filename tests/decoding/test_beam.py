"""Beam search: identities with the teacher-forced model and with exhaustive search."""

import functools
import itertools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.decoding.base import NO_TOKEN
from kd_jax.decoding.beam import beam_search, length_penalty
from kd_jax.decoding.greedy import greedy
from kd_jax.models.base import Cache, Model
from kd_jax.types import Inputs, Tokens
from tests.decoding.small_model import ENDS, EOS, LENGTH, MODEL, PARAMS, PROMPTS, ROWS, SOURCES, V, logp_of, with_bias


def test_the_length_penalty_by_hand():
    """6/6; sqrt(9/6); 12/6; (21/6) squared; exponent 0 for none."""
    for length, alpha, want in ((1, 0.6, 1.0), (4, 0.5, 1.224744871), (7, 1.0, 2.0), (16, 2.0, 12.25), (9, 0.0, 1.0)):
        np.testing.assert_allclose(length_penalty(jnp.float32(length), alpha), want, rtol=1e-6)


def penalty(lengths, alpha):
    return ((5 + lengths) / 6) ** alpha


def test_beam_of_one_without_penalty_is_greedy_or_better():
    one = beam_search(MODEL, PARAMS, PROMPTS, beam=1, alpha=0.0, **ENDS)
    ids_BT = greedy(MODEL, PARAMS, PROMPTS, **ENDS)
    for row in ROWS:
        if EOS in ids_BT[row].tolist():
            chosen = logp_of(SOURCES[row], ids_BT[row : row + 1])[0]
            assert one.scores_BK[row, 0] >= chosen - 1e-4
            same = one.ids_BKT[row, 0].tolist() == ids_BT[row].tolist()
            assert same or one.scores_BK[row, 0] > chosen


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_a_wide_beam_equals_exhaustive_search(alpha):
    decoded = beam_search(MODEL, PARAMS, PROMPTS, beam=300, alpha=alpha, **ENDS)
    others = [v for v in range(V) if v != EOS]
    ended = [(*words, EOS) for count in range(LENGTH) for words in itertools.product(others, repeat=count)]
    lengths = np.asarray(list(map(len, ended)))
    ids_NT = np.asarray([[*ids, *[NO_TOKEN] * (LENGTH - len(ids))] for ids in ended])
    for row in (0, 1):
        scores_N = logp_of(SOURCES[row], ids_NT) / penalty(lengths, alpha)
        best = np.argsort(-scores_N)[:5]
        np.testing.assert_allclose(decoded.scores_BK[row, :5], scores_N[best], rtol=1e-4)
        assert decoded.ids_BKT[row, 0].tolist() == ids_NT[best[0]].tolist()


NEVER_ENDS = np.where(np.arange(V) == EOS, -1e3, 0.0)
PREFERS_ZERO = np.where(np.arange(V) == 0, 15.0, 0.0)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("bias_V", [np.zeros(V), PREFERS_ZERO, NEVER_ENDS], ids=["plain", "id 0", "nothing ended"])
def test_log_probabilities_equal_the_teacher_forced_model(bias_V, alpha):
    """Also if id 0 is written, and if open hypotheses are returned."""
    model, params = with_bias(bias_V)
    decoded = jax.device_get(beam_search(model, params, PROMPTS, beam=2, alpha=alpha, **ENDS))
    real_BKT = decoded.ids_BKT[list(ROWS)]
    assert (bias_V is NEVER_ENDS) != (real_BKT == EOS).any()
    assert (bias_V is PREFERS_ZERO) <= (real_BKT[..., 0] == 0).any()
    for row, ids_KT in zip(ROWS, real_BKT, strict=True):
        ends_K = (ids_KT == EOS).any(1)
        want_K = logp_of(SOURCES[row], ids_KT, params, model)
        np.testing.assert_allclose(decoded.logp_BK[row], want_K, rtol=1e-5, atol=1e-5)
        lengths_K = np.where(ends_K, (ids_KT == EOS).argmax(1) + 1, LENGTH)
        np.testing.assert_allclose(decoded.scores_BK[row], want_K / penalty(lengths_K, alpha), rtol=1e-5, atol=1e-5)


def test_open_hypotheses_follow_ended_ones():
    """Of 8 candidates over 6 ids the end is one only in the first step; it comes first, whatever its score."""
    model, params = with_bias(NEVER_ENDS)
    decoded = jax.device_get(beam_search(model, params, PROMPTS, beam=4, alpha=0.6, **ENDS))
    for row in ROWS:
        assert (decoded.ids_BKT[row] == EOS).any(-1).tolist() == [True, False, False, False]
        assert decoded.scores_BK[row, 0] < -500 < decoded.scores_BK[row, 3]
        assert (np.diff(decoded.scores_BK[row, 1:]) <= 0).all()


def test_rows_are_independent():
    search = functools.partial(beam_search, beam=3, alpha=0.6, **ENDS)
    whole = search(MODEL, PARAMS, PROMPTS)
    for row in (0, 3):
        alone = search(MODEL, PARAMS, jax.tree.map(lambda x, row=row: x[row : row + 1], PROMPTS))
        assert alone.ids_BKT[0].tolist() == whole.ids_BKT[row].tolist()


def test_hypotheses_are_sorted_and_distinct():
    """Ended ones by score, then open ones by score."""
    decoded = jax.device_get(beam_search(MODEL, PARAMS, PROMPTS, beam=4, alpha=0.6, **ENDS))
    for row in ROWS:
        assert len({tuple(ids) for ids in decoded.ids_BKT[row].tolist()}) == 4
        open_K = ~(decoded.ids_BKT[row] == EOS).any(-1)
        order = list(zip(open_K, -decoded.scores_BK[row], strict=True))
        assert order == sorted(order)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("bias_V", [np.zeros(V), NEVER_ENDS], ids=["plain", "nothing ended"])
def test_the_best_do_not_depend_on_their_number(bias_V, alpha):
    model, params = with_bias(bias_V)
    search = functools.partial(beam_search, model, params, PROMPTS, beam=4, alpha=alpha, **ENDS)
    all_output = jax.device_get(search())
    for best in (1, 2):
        output = jax.device_get(search(best=best))
        for ours, expected in zip(output, all_output, strict=True):
            np.testing.assert_array_equal(ours[list(ROWS)], expected[list(ROWS), :best])


ONE = jnp.ones((1, 1), jnp.int32)
NO_CACHE = Cache(jnp.int32(0), ONE[0], jnp.zeros((1, 1, 0), bool), jnp.arange(0), (), (), ONE > 0)
# A model whose parameters are the logits of the next token after each token.
BIGRAMS = Model(*[None] * 4, prefill=lambda *_: NO_CACHE, extend=lambda table, cache, ids: (table[ids], cache))
AFTER_ZERO = Inputs(ONE[0], Tokens(0 * ONE, 0 * ONE, ONE), None)
ALPHAS = st.sampled_from([0.0, 0.6, 1.0, 2.0])


@functools.partial(jax.jit, static_argnames=("length", "beam", "best"))
def search_bigrams(table_VV, alpha, *, length, beam, best):
    """Search from token 0; the last token of the table ends a text."""
    settings = {"eos": len(table_VV) - 1, "length": length, "beam": beam, "alpha": alpha, "best": best}
    return jax.tree.map(lambda x: x[0], beam_search(BIGRAMS, table_VV, AFTER_ZERO, **settings))


def log_softmax(table_VV):
    return table_VV - np.logaddexp.reduce(table_VV.astype(np.float64), -1, keepdims=True)


def logp_of_text(logp_VV, ids):
    return sum(logp_VV[previous, token] for previous, token in itertools.pairwise((0, *ids)))


@pytest.mark.parametrize("alpha, ids", [(0.0, (2,)), (0.6, (1, 2)), (1.0, (1, 2)), (2.0, (1, 2))])
def test_a_longer_text_may_win_after_a_shorter_one_ended(alpha, ids):
    """The end has p = 0.45: -0.80. Token 1, which surely ends next, has 0.44: -0.82, and -0.75 over (7/6)^0.6."""
    table_VV = jnp.log(jnp.asarray([[0.11, 0.44, 0.45], [5e-4, 5e-4, 0.999], [0.3, 0.3, 0.4]]))
    found = search_bigrams(table_VV, jnp.float32(alpha), length=5, beam=4, best=1)
    assert tuple(found.ids_BKT[0, : len(ids)].tolist()) == ids


@pytest.mark.parametrize("vocab_size, length, best", [(3, 5, 1), (3, 3, 3), (4, 3, 1), (4, 4, 2)])
@given(data=st.data(), alpha=ALPHAS)
@settings(max_examples=40, deadline=None)
def test_no_text_beats_the_best_of_a_beam_that_holds_all(vocab_size, length, best, data, alpha):
    """An end before all texts are finished must lose nothing: long texts may win by their length penalty."""
    table = hnp.arrays(np.float32, (vocab_size, vocab_size), elements=st.integers(-16, 16).map(lambda i: i / 4))
    table_VV = data.draw(table)
    logp_VV, end = log_softmax(table_VV), vocab_size - 1
    texts = [(*ids, end) for count in range(length) for ids in itertools.product(range(vocab_size - 1), repeat=count)]
    score = lambda ids: logp_of_text(logp_VV, ids) / penalty(len(ids), alpha)  # noqa: E731
    beam = -(-vocab_size * (vocab_size - 1) ** (length - 1) // 2)  # 2K candidates: all of the last step
    found = jax.device_get(search_bigrams(table_VV, jnp.float32(alpha), length=length, beam=beam, best=best))
    np.testing.assert_allclose(found.scores_BK, sorted(map(score, texts), reverse=True)[:best], rtol=1e-5, atol=1e-6)
    for ids_T, its_score, logp in zip(found.ids_BKT, found.scores_BK, found.logp_BK, strict=True):
        ids = tuple(ids_T[ids_T != NO_TOKEN])
        assert ids in texts
        np.testing.assert_allclose((its_score, logp), (score(ids), logp_of_text(logp_VV, ids)), rtol=1e-5, atol=1e-6)


def plain_beam_search(logp_VV, length, beam, alpha):
    """Return the ended texts, best score first, of a search in lists that never stops early: (score, ids)."""
    open_texts, ended = [(0.0, ())], []
    for count in range(1, length + 1):
        candidates = [
            (logp + logp_VV[(ids or (0,))[-1], token], (*ids, token))
            for logp, ids in open_texts
            for token in range(len(logp_VV))
        ]
        candidates = sorted(candidates, reverse=True)[: 2 * beam]
        is_end = lambda candidate: candidate[1][-1] == len(logp_VV) - 1  # noqa: E731
        ended += [(logp / penalty(count, alpha), ids) for logp, ids in filter(is_end, candidates)]
        open_texts = list(itertools.filterfalse(is_end, candidates))[:beam]
    return sorted(ended, reverse=True)


@pytest.mark.parametrize("beam, best", [(1, 1), (2, 1), (2, 2), (3, 2)])
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.5, 2.0]), alpha=ALPHAS)
@settings(max_examples=40, deadline=None)
def test_a_narrow_beam_equals_a_search_in_lists(beam, best, seed, spread, alpha):
    table_VV = spread * np.random.default_rng(seed).normal(size=(5, 5)).astype(np.float32)
    expected = plain_beam_search(log_softmax(table_VV), 6, beam, alpha)[:best]
    found = jax.device_get(search_bigrams(table_VV, jnp.float32(alpha), length=6, beam=beam, best=best))
    for (score, ids), ids_T, its_score in zip(expected, found.ids_BKT, found.scores_BK, strict=False):
        assert tuple(ids_T[ids_T != NO_TOKEN]) == ids
        np.testing.assert_allclose(its_score, score, rtol=1e-5, atol=1e-6)
