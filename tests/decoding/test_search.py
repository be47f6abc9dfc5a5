"""Decoding: identities with the teacher-forced model and with exhaustive search."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.decoding.search import beam_search, greedy, length_penalty, sample
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.types import Batch

START, EOS, V, LENGTH = 1, 2, 6, 4
MODEL = EncoderDecoder(encoder_layers=1, decoder_layers=2, d_model=16, heads=2, d_ff=16, dropout=0.0).build(V)
PARAMS = jax.tree.map(lambda p: 3.0 * p, MODEL.init(jax.random.key(3)))
RNG = np.random.default_rng(0)
SOURCE = jnp.asarray(RNG.integers(3, V, (5, 4)), jnp.int32)
MASK = jnp.asarray(np.arange(4)[None] < np.asarray([[4], [2], [3], [0], [1]]))
ENDS = {"start": START, "eos": EOS, "length": LENGTH}


def logp(ids_BT):
    """Teacher-forced log-probabilities of the tokens, [B, T]."""
    rows, length = ids_BT.shape
    inputs = jnp.concatenate([jnp.full((rows, 1), START, jnp.int32), ids_BT[:, :-1]], axis=1)
    batch = Batch(jnp.arange(rows), SOURCE[:rows], MASK[:rows], inputs, ids_BT, ids_BT > 0, jnp.ones(rows), {})
    logits = MODEL.head(PARAMS).logits(MODEL.apply(PARAMS, batch))
    return jax.nn.log_softmax(logits), logits.argmax(-1)


def test_greedy_is_the_argmax_of_the_teacher_forced_model():
    ids = greedy(MODEL, PARAMS, SOURCE, MASK, **ENDS)
    _, best = logp(ids)
    for row in (0, 1, 2, 4):
        ended = np.flatnonzero(ids[row] == EOS)
        last = ended[0] + 1 if len(ended) else LENGTH
        assert ids[row, :last].tolist() == best[row, :last].tolist()
        assert not ids[row, last:].any()


def test_a_row_without_a_source_writes_nothing():
    assert not greedy(MODEL, PARAMS, SOURCE, MASK, **ENDS)[3].any()


def test_beam_of_one_without_penalty_is_greedy_or_better():
    one = beam_search(MODEL, PARAMS, SOURCE, MASK, beam=1, alpha=0.0, **ENDS)
    ids = greedy(MODEL, PARAMS, SOURCE, MASK, **ENDS)
    log_p, _ = logp(ids)
    chosen = jnp.where(ids > 0, jnp.take_along_axis(log_p, ids[..., None], -1)[..., 0], 0.0).sum(-1)
    for row in (0, 1, 2, 4):
        if EOS in ids[row].tolist():
            assert one.scores_BK[row, 0] >= chosen[row] - 1e-4
            same = one.ids_BKT[row, 0].tolist() == ids[row].tolist()
            assert same or one.scores_BK[row, 0] > chosen[row]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_a_wide_beam_finds_what_exhaustive_search_finds(alpha):
    beam = 300
    found = beam_search(MODEL, PARAMS, SOURCE, MASK, beam=beam, alpha=alpha, **ENDS)
    others = [v for v in range(V) if v != EOS]
    for row in (0, 1):
        scores = {}
        for count in range(LENGTH):
            for words in itertools.product(others, repeat=count):
                scores[(*words, EOS)] = None
        sequences = np.asarray([[*s, *[0] * (LENGTH - len(s))] for s in scores], np.int32)
        rows = len(sequences)
        inputs = np.concatenate([np.full((rows, 1), START, np.int32), sequences[:, :-1]], 1)
        tiled = [jnp.repeat(x[row : row + 1], rows, 0) for x in (SOURCE, MASK)]
        batch = Batch(
            jnp.arange(rows),
            *tiled,
            jnp.asarray(inputs),
            jnp.asarray(sequences),
            jnp.ones_like(inputs) > 0,
            jnp.ones(rows),
            {},
        )
        log_p = jax.nn.log_softmax(MODEL.head(PARAMS).logits(MODEL.apply(PARAMS, batch)))
        each = np.take_along_axis(np.asarray(log_p), sequences[..., None], -1)[..., 0]
        lengths = np.asarray([len(s) for s in scores])
        total = (each * (np.arange(LENGTH)[None] < lengths[:, None])).sum(1)
        total = total / np.asarray(length_penalty(jnp.asarray(lengths, jnp.float32), alpha))
        order = np.argsort(-total)[:5]
        np.testing.assert_allclose(found.scores_BK[row, :5], total[order], rtol=1e-4)
        assert found.ids_BKT[row, 0].tolist() == sequences[order[0]].tolist()


def test_the_rest_of_the_batch_changes_nothing():
    search = functools.partial(beam_search, beam=3, alpha=0.6, **ENDS)
    whole = search(MODEL, PARAMS, SOURCE, MASK)
    for row in (0, 4):
        alone = search(MODEL, PARAMS, SOURCE[row : row + 1], MASK[row : row + 1])
        assert alone.ids_BKT[0].tolist() == whole.ids_BKT[row].tolist()


def test_hypotheses_are_sorted_and_distinct():
    found = beam_search(MODEL, PARAMS, SOURCE, MASK, beam=4, alpha=0.6, **ENDS)
    for row in (0, 1, 2, 4):
        assert len({tuple(ids) for ids in found.ids_BKT[row].tolist()}) == 4
        assert (jnp.diff(found.scores_BK[row]) <= 0).all()


def test_sampling_cold_is_greedy_and_a_key_decides():
    cold = sample(MODEL, PARAMS, SOURCE, MASK, jax.random.key(0), temperature=1e-4, **ENDS)
    chex.assert_trees_all_equal(cold, greedy(MODEL, PARAMS, SOURCE, MASK, **ENDS))
    draws = [sample(MODEL, PARAMS, SOURCE, MASK, jax.random.key(k), **ENDS) for k in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert not (draws[0] == draws[2]).all()


def test_one_trace_serves_all_batches_of_a_shape():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def translate(params, source, mask):
        return greedy(MODEL, params, source, mask, **ENDS)

    for shift in range(3):
        translate(PARAMS, jnp.roll(SOURCE, shift, 0), MASK)
