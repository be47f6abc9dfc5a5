"""Speculative decoding writes the target's greedy text, with any draft, batch and number of drafts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.batches.layouts import DecoderOnlyLayout, EncoderDecoderLayout
from kd_jax.decoding.base import NO_TOKEN
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.speculative import BoundModel, speculative
from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.tokenizers.sentencepiece import START
from tests.decoding.small_model import EOS, SOURCES, V

BOTH = pytest.mark.parametrize("family", ["encoder_decoder", "decoder_only"])
LENGTH = 12
ENDS = {"eos": EOS, "length": LENGTH}
SIZES = {"d_model": 16, "heads": 2, "d_ff": 16, "dropout": 0.0}
# The target's positions are learned, and drafts of the last round lie beyond its context.
TARGETS = {
    "encoder_decoder": EncoderDecoder(1, 2, positions="learned", context=LENGTH, **SIZES),
    "decoder_only": DecoderOnly(2, positions="learned", context=4 + LENGTH, **SIZES),
}
DRAFTS = {"encoder_decoder": EncoderDecoder(1, 1, **SIZES), "decoder_only": DecoderOnly(1, **SIZES)}
LAYOUTS = {"encoder_decoder": EncoderDecoderLayout, "decoder_only": DecoderOnlyLayout}


@functools.cache
def prompts(family):
    """Return four prompts of 1 to 4 tokens and a row of padding."""
    return jax.tree.map(jnp.asarray, LAYOUTS[family](START).prompts(SOURCES, 5, 4))


@functools.cache
def programs(family, drafts):
    """Return functions: seed -> (target's parameters, draft's), greedy decoding, and speculative decoding."""
    target, draft = TARGETS[family].build(V), DRAFTS[family].build(V)

    @jax.jit
    def init(seed):
        keys = jax.random.split(jax.random.key(seed))
        return jax.tree.map(lambda p: 3.0 * p, (target.init(keys[0]), draft.init(keys[1])))

    def write_speculative(params, inputs):
        return speculative(BoundModel(target, params[0]), BoundModel(draft, params[1]), inputs, drafts=drafts, **ENDS)

    write_greedy = jax.jit(lambda params, inputs: greedy(target, params[0], inputs, **ENDS))
    return init, write_greedy, jax.jit(write_speculative)


def top_margins(family, params, inputs, ids_BT):
    """Return the least difference of the two largest logits along each text."""
    model = TARGETS[family].build(V)
    cache, token_B, least_B = model.prefill(params, inputs, LENGTH), inputs.decoder.ids_BT[:, -1], np.inf
    for t in range(LENGTH):
        logits_BV, cache = model.step(params, cache, token_B)
        two_B2 = jax.lax.top_k(logits_BV, 2)[0]
        least_B = np.minimum(least_B, np.where(ids_BT[:, t] == NO_TOKEN, np.inf, two_B2[:, 0] - two_B2[:, 1]))
        token_B = ids_BT[:, t]
    return least_B


@BOTH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), drafts=st.sampled_from([1, 4, 15]))
def test_texts_equal_the_targets_greedy_texts(family, seed, drafts):
    """With an unrelated draft. Texts may differ if two logits tie within rounding."""
    init, write_greedy, write_speculative = programs(family, drafts)
    params, inputs = init(seed), prompts(family)
    expected_BT, (ids_BT, drafted_B, accepted_B) = write_greedy(params, inputs), write_speculative(params, inputs)
    for row in np.flatnonzero((ids_BT != expected_BT).any(1)):
        assert top_margins(family, params[0], inputs, expected_BT)[row] < 1e-4
    assert (accepted_B <= drafted_B).all() and (accepted_B <= (ids_BT != NO_TOKEN).sum(1)).all()
    assert drafted_B[-1] == accepted_B[-1] == 0 and (ids_BT[-1] == NO_TOKEN).all()
    assert write_speculative._cache_size() == 1


@BOTH
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), row=st.integers(0, 3))
def test_rows_are_independent(family, seed, row):
    """A row beside rows of padding alone decides how far a round advances."""
    init, _, write = programs(family, 4)
    params, inputs = init(seed), prompts(family)
    only = jax.tree.map(lambda x: jnp.where(jnp.arange(5).reshape(-1, *[1] * (x.ndim - 1)) == row, x, 0), inputs)
    whole, alone = write(params, inputs), write(params, only)
    assert whole.ids_BT[row].tolist() == alone.ids_BT[row].tolist()
    assert alone.drafted_B[row] <= whole.drafted_B[row] and (alone.ids_BT == NO_TOKEN).all(1).sum() == 4


@BOTH
@pytest.mark.parametrize("drafts", [1, 4])
def test_all_drafts_of_the_target_itself_are_accepted(family, drafts):
    """A round adds the drafts and one token more, so of n tokens about n drafts / (drafts + 1) are drafted."""
    target = TARGETS[family].build(V)
    params = jax.tree.map(lambda p: 3.0 * p, target.init(jax.random.key(7)))
    write = jax.jit(
        lambda params, inputs: speculative(*[BoundModel(target, params)] * 2, inputs, drafts=drafts, **ENDS)
    )
    ids_BT, drafted_B, accepted_B = write(params, prompts(family))
    assert accepted_B.tolist() == drafted_B.tolist()
    tokens_B = np.asarray((ids_BT != NO_TOKEN).sum(1))
    assert accepted_B.tolist() == (tokens_B - tokens_B // (drafts + 1)).tolist() and max(tokens_B) == LENGTH


def bigram_model(logits_VV):
    """Return a model whose logits depend on the last token alone."""
    model = DRAFTS["decoder_only"].build(V)
    return BoundModel(
        model._replace(extend=lambda params, cache, ids: (logits_VV[ids], cache)), model.init(jax.random.key(0))
    )


def test_counts_of_drafts_by_hand():
    """2 drafts a round, over 0 -> 1 -> 3 -> 4 -> 5 -> 2 (the end); the draft has 3 -> 5."""
    order = [0, 1, 3, 4, 5, EOS]
    follows = jnp.zeros((V, V)).at[jnp.array(order[:-1]), jnp.array(order[1:])].set(1.0)
    target, draft = bigram_model(follows), bigram_model(follows.at[3, 5].set(2.0))
    inputs = prompts("decoder_only")
    last_B = jnp.array([0, 3, 4, 5, 0])
    inputs = inputs._replace(decoder=inputs.decoder._replace(ids_BT=inputs.decoder.ids_BT.at[:, -1].set(last_B)))
    ids_BT, drafted_B, accepted_B = speculative(target, draft, inputs, eos=EOS, length=6, drafts=2)
    assert ids_BT.tolist() == [
        [1, 3, 4, 5, EOS, NO_TOKEN],
        [4, 5, EOS, NO_TOKEN, NO_TOKEN, NO_TOKEN],
        [5, EOS, NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN],
        [EOS, *[NO_TOKEN] * 5],
        [NO_TOKEN] * 6,
    ]
    # Round 1: drafts 1 3 | 5 2 | 5 2 | 2; row 1 accepts none, so all advance by one token.
    # Round 2, after 1 | 4 | 5: drafts 3 5 | 5 2 | 2; row 0 accepts one and advances by two: 3 4 | 5 2 | 2.
    # Round 3, after 4: drafts 5 2.
    assert drafted_B.tolist() == [2 + 2 + 2, 2 + 2, 2 + 1, 1, 0]
    assert accepted_B.tolist() == [1 + 1 + 2, 0 + 2, 1 + 1, 1, 0]


def test_models_of_other_families_or_vocabularies_are_refused():
    models = {f: BoundModel(a.build(V), a.build(V).init(jax.random.key(0))) for f, a in DRAFTS.items()}
    target, other = models["encoder_decoder"], models["decoder_only"]
    ends = ENDS | {"drafts": 2}
    with pytest.raises(KdError, match="draft: expected an encoder-decoder model as the target, got decoder-only"):
        speculative(target, other, prompts("encoder_decoder"), **ends)
    larger = DRAFTS["encoder_decoder"].build(V + 1)
    with pytest.raises(KdError, match=f"draft: expected the target's vocabulary of {V} tokens, got {V + 1}"):
        speculative(target, BoundModel(larger, larger.init(jax.random.key(0))), prompts("encoder_decoder"), **ends)
    with pytest.raises(KdError, match="drafts: expected at least 1, got 0"):
        speculative(target, target, prompts("encoder_decoder"), **ENDS, drafts=0)
