"""Metrics: closed forms, values of the libraries, paired resamples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from kd_jax.tasks.generation import Generation
from kd_jax.tasks.metrics import Metric, Outcome, WordTokenizer, bits_per_byte, ratio, resampled_sums, rouge, rouge_f

WORDS = ["the", "a", "cat", "cats", "sat", "sitting", "on", "mats", "mat,", "7"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


@given(st.lists(st.text("aé漢 ", min_size=1), min_size=1, max_size=5), st.sampled_from([2, 7, 4096]))
def test_uniform_model_has_the_perplexity_of_its_vocabulary(texts, vocabulary):
    tokens_N = np.asarray([len(text) + 1 for text in texts])
    outcome = Outcome([{"text": x} for x in texts], [], [], tokens_N * math.log(vocabulary), tokens_N)
    bits, perplexity, *_ = Generation().metrics
    expected = sum(tokens_N) * math.log2(vocabulary) / len("".join(texts).encode())
    np.testing.assert_allclose(bits.score(outcome, 0).value, expected)
    np.testing.assert_allclose(perplexity.score(outcome, 20).value, vocabulary)
    np.testing.assert_allclose(perplexity.score(outcome, 20).interval, vocabulary)


def test_bits_per_byte_is_a_ratio_of_sums():
    outcome = Outcome([{"t": "ab"}, {"t": "é" * 3}], [], [], np.log([2.0**8, 2.0**4]), np.array([3, 4]))
    assert bits_per_byte(lambda example: example["t"]).score(outcome, 0).value == pytest.approx(12 / 8)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=4), st.sampled_from(["L", "1", "2"]))
def test_rouge_is_the_mean_of_rouge_score(rows, kind):
    """The best of several references counts."""
    scorer = RougeScorer([f"rouge{kind}"], use_stemmer=True)
    f = lambda reference, text: scorer.score(reference, text)[f"rouge{kind}"].fmeasure  # noqa: E731
    expected = 100 * np.mean([max(f(first, text), f(second, text)) for text, first, second in rows])
    outcome = Outcome([{}] * len(rows), [text for text, *_ in rows], [references for _, *references in rows])
    np.testing.assert_allclose(rouge(kind, "en").score(outcome, 0).value, expected)


def test_rouge_of_a_published_example():
    """The example of Lin 2004, section 3.1, with a verb that has another stem."""
    reference = ["police killed the gunman"]
    assert rouge_f("L", "en", "police kill the gunman", reference) == 100  # stemmed
    assert rouge_f("L", "en", "police ended the gunman", reference) == 75
    assert rouge_f("L", "en", "the gunman police ended", reference) == 50
    assert rouge_f("2", "en", "the gunman police ended", reference) == pytest.approx(100 / 3)


@pytest.mark.parametrize("language", ["en", "eng_Latn", "zh", "other"])
def test_rouge_has_the_words_of_every_script(language):
    """rouge-score's own words are of a-z and 0-9 only, so identical texts in other scripts would score 0."""
    for text in ("два дома", "我愛你", "हिन्दी में", "السماء زرقاء", "à"):
        assert rouge_f("L", language, text, [text]) == 100
    assert rouge_f("1", "fr", "une été", ["un été"]) == 50
    assert rouge_f("1", language, "我愛狗", ["我愛你"]) == pytest.approx(200 / 3)
    assert WordTokenizer().tokenize("abc漢字def, 3.5_x") == ["abc", "漢", "字", "def", "3", "5", "x"]


def test_rouge_of_an_empty_text_is_zero():
    outcome = Outcome([{}], [""], [["a cat"]])
    assert [rouge(kind, "en").score(outcome, 3) for kind in ("L", "1", "2")] == [(0, (0, 0))] * 3


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_resamples_of_two_models_are_paired(values):
    """A constant difference on every example is the difference in every resample."""
    first = np.stack([values, np.ones(len(values))], axis=1)
    sums, better = resampled_sums(first, 50), resampled_sums(first + [3.0, 0.0], 50)
    np.testing.assert_array_equal(sums[:, 1], len(values))
    np.testing.assert_allclose(better[:, 0] / better[:, 1] - sums[:, 0] / sums[:, 1], 3.0, atol=1e-9)


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    rows = lambda outcome: np.stack([values, np.ones(400)], axis=1)  # noqa: E731
    metric = Metric("mean", "mean", True, 2, "texts", rows, ratio)
    score = metric.score(Outcome([{}] * 400, [""] * 400, [[""]] * 400), 2000)
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose(score.interval, (values.mean() - half, values.mean() + half), atol=0.1 * half)
