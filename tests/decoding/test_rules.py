"""Rules of texts: each against the logits processor of transformers, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.decoding.base import NO_TOKEN
from kd_jax.decoding.rules import NO_RULES, Rules, suppress_ngrams
from kd_jax.types import Inputs, Tokens

V, LENGTH, EOS = 7, 6, 5
jitted_ngrams = jax.jit(suppress_ngrams, static_argnums=4)


def tokens(ids_BT, real_BT):
    return Tokens(jnp.array(ids_BT), jnp.zeros_like(jnp.array(ids_BT)), jnp.array(real_BT, jnp.int32))


def inputs_of(prompt_T, source_S=None):
    """Return one prompt with two positions of padding before it, and its source with two behind."""
    decoder = tokens([[3, 3, *prompt_T]], [[0, 0, *[1] * len(prompt_T)]])
    encoder = source_S and tokens([[*source_S, 3, 3]], [[*[1] * len(source_S), 0, 0]])
    return Inputs(jnp.array([0]), decoder, encoder)


def scores_after(rules, prompt_T, written_T, scores_V, source_S=None):
    """Return the scores of the next token."""
    ids_NT = jnp.array([[*written_T, *[NO_TOKEN] * (LENGTH - len(written_T))]])
    process = rules.processor(inputs_of(prompt_T, source_S), EOS, LENGTH)
    return process(jnp.array([scores_V], jnp.float32), ids_NT, jnp.int32(len(written_T)))[0]


ids = st.lists(st.integers(0, V - 1), min_size=1, max_size=LENGTH - 1)
scores = st.lists(st.integers(-8, 8).map(lambda x: x / 2), min_size=V, max_size=V)


@given(prompt=ids, written=ids, source=ids, scores_V=scores, n=st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_each_rule_is_the_processor_of_transformers(prompt, written, source, scores_V, n):
    """Of an encoder-decoder: the decoder's ids are the prompt's and the written ones."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    text, length = torch.tensor([[*prompt, *written]]), len(prompt) + LENGTH
    end = torch.tensor([EOS])
    pairs = {
        Rules(repetition_penalty=1.5): process.RepetitionPenaltyLogitsProcessor(1.5),
        Rules(no_repeat_ngram=n): process.NoRepeatNGramLogitsProcessor(n),
        Rules(no_source_ngram=n): process.EncoderNoRepeatNGramLogitsProcessor(n, torch.tensor([source])),
        Rules(min_length=n): process.MinNewTokensLengthLogitsProcessor(len(prompt), n, end),
        Rules(suppress_first=(1, 4)): process.SuppressTokensAtBeginLogitsProcessor([1, 4], len(prompt)),
        Rules(force_end=True): process.ForcedEOSTokenLogitsProcessor(length, EOS),
    }
    for rules, theirs in pairs.items():
        expected = theirs(text, torch.tensor([scores_V], dtype=torch.float32))[0]
        ours = scores_after(rules, prompt, written, scores_V, source)
        np.testing.assert_allclose(ours, expected, rtol=1e-6, err_msg=str(rules))


@given(text=st.lists(st.integers(0, 2), max_size=9), n=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_suppressed_are_exactly_the_tokens_that_would_repeat(text, n):
    """By brute force: append each token, and look for an n-gram that is there twice."""
    ids_NX = jnp.array([[*text, *[NO_TOKEN] * (9 - len(text))]])
    ours = jitted_ngrams(jnp.zeros((1, 3)), ids_NX, jnp.int32(len(text)), ids_NX, n)[0]
    for token in range(3):
        longer = (*text, token)
        grams = [longer[i : i + n] for i in range(len(longer) - n + 1)]
        assert (grams.count(longer[-n:]) > 1 and len(longer) >= n) == (ours[token] == -np.inf)


def test_prompts_of_a_decoder_are_part_of_the_text_and_padding_is_not():
    assert scores_after(Rules(no_repeat_ngram=2), [1, 2], [1], [0.0] * V).tolist() == [0, 0, -np.inf, 0, 0, 0, 0]
    assert scores_after(Rules(no_repeat_ngram=1), [1], [], [0.0] * V).tolist() == [0, -np.inf, 0, 0, 0, 0, 0]
    assert scores_after(Rules(repetition_penalty=2.0), [1], [4], [2.0] * V).tolist() == [2, 1, 2, 2, 1, 2, 2]


def test_every_end_token_waits_for_the_least_length():
    process = Rules(min_length=2).processor(inputs_of([1]), (EOS, 2), LENGTH)
    empty = jnp.full((1, LENGTH), NO_TOKEN)
    for written, possible in ((0, False), (1, False), (2, True)):
        scores_V = process(jnp.zeros((1, V)), empty, jnp.int32(written))[0]
        assert [bool(x == 0) for x in scores_V[jnp.array([EOS, 2, 1])]] == [possible, possible, True]


def test_hypotheses_of_a_prompt_share_its_prompt():
    """Two prompts with two hypotheses each: rows 0 and 1 are of the first prompt."""
    inputs = Inputs(jnp.array([0, 1]), tokens([[1, 2], [4, 3]], [[1, 1], [1, 1]]), None)
    process = Rules(no_repeat_ngram=2).processor(inputs, EOS, LENGTH)
    ids_NT = jnp.full((4, LENGTH), NO_TOKEN).at[:, 0].set(jnp.array([1, 4, 1, 4]))
    suppressed_NV = process(jnp.zeros((4, V)), ids_NT, jnp.int32(1)) == -jnp.inf
    assert jnp.argwhere(suppressed_NV).tolist() == [[0, 2], [3, 3]]


def test_no_rule_changes_nothing():
    assert NO_RULES.processor(inputs_of([1]), EOS, LENGTH) is None
