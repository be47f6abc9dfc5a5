"""Paired differences: the metric's own values, intervals that hold what they say, verdicts that seeds must share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from scipy import stats

from kd_jax.reporting.paired import Scores, difference, interval, scores, verdict
from kd_jax.tasks.metrics import Metric, Outcome
from kd_jax.tasks.translation import Translation

MEAN = Metric(
    "mean",
    "mean",
    True,
    2,
    "tokens",
    lambda one: np.stack([one.nll_N, one.tokens_N], 1),
    lambda sums: sums[0] / sums[1],
)
floats = st.lists(st.floats(-5, 5), min_size=2, max_size=5).map(np.asarray)


def of_values(values_N):
    """An outcome whose metric is the mean of these."""
    return Outcome([{}] * len(values_N), [], [], values_N, np.ones(len(values_N), np.int64))


def test_values_are_the_metrics_own():
    hypotheses = ["the cat sat on the mat today", "a small library for reading images", "one two"]
    references = ["the cat sat on a mat today", "small library for reading of images", "two one"]
    outcome = Outcome([{}] * 3, hypotheses, [[reference] for reference in references])
    ours = scores(Translation().metrics[0], [outcome, outcome], resamples=5)
    assert ours.value_S == pytest.approx([BLEU(trg_lang="fr").corpus_score(hypotheses, [references]).score] * 2)
    assert ours.resampled_SR.shape == (2, 5) and (ours.resampled_SR[0] == ours.resampled_SR[1]).all()


@given(floats)
def test_without_variance_over_examples_it_is_the_t_interval_of_the_seeds(each_S):
    spread = stats.sem(each_S)
    if spread > 1e-6:
        expected = stats.t.interval(0.95, len(each_S) - 1, each_S.mean(), spread)
        np.testing.assert_allclose(interval(each_S, 0.0, 100), expected, atol=1e-9)


@given(floats, st.floats(0, 4), st.integers(2, 1000))
def test_it_turns_with_the_sign_and_widens_with_the_examples_variance(each_S, variance, examples):
    low, high = interval(each_S, variance, examples)
    np.testing.assert_allclose(interval(-each_S, variance, examples), (-high, -low), atol=1e-9)
    half = stats.norm.ppf(0.975) * (variance + each_S.var(ddof=1) / len(each_S)) ** 0.5
    assert high - low >= 2 * half - 1e-9  # Student's t is never surer than the normal


def test_one_seed_has_the_examples_variance_alone():
    low, high = interval(np.array([3.0]), 4.0, 11)
    np.testing.assert_allclose((low, high), stats.t.interval(0.95, 10, 3.0, 2.0))
    assert interval(np.array([3.0]), 0.0, 1) == (3.0, 3.0)


def test_three_seeds_and_their_examples_are_covered():
    """Differences of known parts: seed + example + both. The interval is for other seeds and other examples."""
    rng, trials, inside = np.random.default_rng(0), 1500, 0
    for _ in range(trials):
        parts = 0.1 * rng.normal(size=(3, 1)) + rng.normal(size=(1, 100)) + rng.normal(size=(3, 100))
        low, high = interval(parts.mean(1), parts.mean(0).var(ddof=1) / 100, 100)
        inside += low <= 0 <= high
    assert 0.94 <= inside / trials <= 0.985


def test_pairs_cancel_what_examples_have_in_common():
    """Hard examples are hard for both: only what differs is uncertain."""
    rng = np.random.default_rng(1)
    common, own = 10 * rng.normal(size=400), 0.1 * rng.normal(size=400)
    ours, theirs = (scores(MEAN, [of_values(values)], 400) for values in (common + own + 0.1, common))
    one = difference(ours, theirs, True)
    assert one.mean == pytest.approx(own.mean() + 0.1) and one.verdict == "better"
    half = stats.t.ppf(0.975, 399) * own.std() / 20  # the bootstrap's variance of a mean is that of the population
    assert one.interval[1] - one.interval[0] == pytest.approx(2 * half, rel=0.15)


@settings(max_examples=30)
@given(floats, floats)
def test_a_difference_turned_is_the_opposite_verdict(a, b):
    size = min(len(a), len(b))
    ours, theirs = (Scores(x[:size], np.tile(x[:size, None], 3), examples=9) for x in (a, b))
    one, other = difference(ours, theirs, True), difference(theirs, ours, True)
    opposite = {"better": "worse", "worse": "better"}
    assert other.verdict == (opposite[one.verdict] if one.verdict in opposite else one.verdict)
    assert one.verdict == difference(theirs, ours, False).verdict
    assert one.seeds == tuple(-x for x in other.seeds)


def test_the_same_model_is_not_seen_to_differ():
    same = Scores(np.array([1.0, 2.0]), np.zeros((2, 4)), examples=5)
    assert difference(same, same, True)[:3] == (0.0, (0.0, 0.0), (0.0, 0.0))
    assert difference(same, same, True).verdict == "no difference seen"


def test_no_direction_no_verdict():
    assert verdict(np.array([5.0]), 4.0, 6.0, None) == "–"
