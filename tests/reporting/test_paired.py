"""Paired differences: values of the metric, coverage of the intervals, verdicts that all seeds share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from scipy import stats

from kd_jax.reporting.paired import Difference, Scores, difference, interval, scores, verdict
from kd_jax.tasks.metrics import Metric, Outcome
from kd_jax.tasks.translation import Translation

MEAN = Metric(
    "mean",
    "mean",
    True,
    2,
    "tokens",
    lambda outcome: np.stack([outcome.nll_N, outcome.tokens_N], 1),
    lambda sums: sums[0] / sums[1],
)
floats = st.lists(st.floats(-5, 5), min_size=2, max_size=5).map(np.asarray)


def outcome_of(values_N):
    """An outcome whose metric is the mean of the values."""
    return Outcome([{}] * len(values_N), [], [], values_N, np.ones(len(values_N), np.int64))


def test_scores_equal_the_metric():
    hypotheses = ["the cat sat on the mat today", "a small library for reading images", "one two"]
    references = ["the cat sat on a mat today", "small library for reading of images", "two one"]
    outcome = Outcome([{}] * 3, hypotheses, [[reference] for reference in references])
    ours = scores(Translation().metrics[0], [outcome, outcome], resamples=5)
    assert ours.value_S == pytest.approx([BLEU(trg_lang="fr").corpus_score(hypotheses, [references]).score] * 2)
    assert ours.resampled_SR.shape == (2, 5) and (ours.resampled_SR[0] == ours.resampled_SR[1]).all()


@given(floats)
def test_interval_without_variance_over_examples_is_the_seeds_t_interval(each_S):
    error = stats.sem(each_S)
    if error > 1e-6:
        expected = stats.t.interval(0.95, len(each_S) - 1, each_S.mean(), error)
        np.testing.assert_allclose(interval(each_S, 0.0, 100), expected, atol=1e-9)


@given(floats, st.floats(0, 4), st.integers(2, 1000))
def test_interval_mirrors_the_sign_and_is_wider_than_the_normal(each_S, variance, examples):
    low, high = interval(each_S, variance, examples)
    np.testing.assert_allclose(interval(-each_S, variance, examples), (-high, -low), atol=1e-9)
    half = stats.norm.ppf(0.975) * (variance + each_S.var(ddof=1) / len(each_S)) ** 0.5
    assert high - low >= 2 * half - 1e-9


def test_interval_of_one_seed_has_only_the_examples_variance():
    low, high = interval(np.array([3.0]), 4.0, 11)
    np.testing.assert_allclose((low, high), stats.t.interval(0.95, 10, 3.0, 2.0))
    assert interval(np.array([3.0]), 0.0, 1) == (3.0, 3.0)


def test_interval_covers_other_seeds_and_other_examples():
    """Differences are sums of known effects: seed, example, and their interaction."""
    rng, trials, inside = np.random.default_rng(0), 1500, 0
    for _ in range(trials):
        parts = 0.1 * rng.normal(size=(3, 1)) + rng.normal(size=(1, 100)) + rng.normal(size=(3, 100))
        low, high = interval(parts.mean(1), parts.mean(0).var(ddof=1) / 100, 100)
        inside += low <= 0 <= high
    assert 0.94 <= inside / trials <= 0.99


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("seeds, most_better", [(2, 0.031), (3, 0.027), (5, 0.027)])
def test_interval_covers_at_every_ratio_of_the_variances(seeds, most_better, ratio):
    """`ratio` is the seeds' part of the mean's variance over the examples' part. The true difference is 0."""
    rng, trials, examples = np.random.default_rng(0), 40_000, 1000
    of_examples_T1 = rng.normal(size=(trials, 1))  # the mean over examples, common to all seeds
    each_TS = of_examples_T1 + (ratio * seeds) ** 0.5 * rng.normal(size=(trials, seeds))
    variance_T = rng.chisquare(examples - 1, trials) / (examples - 1)
    ends = [interval(each_S, variance, examples) for each_S, variance in zip(each_TS, variance_T.tolist(), strict=True)]
    verdicts = [verdict(each_S, *ends_2, True) for each_S, ends_2 in zip(each_TS, ends, strict=True)]
    assert np.mean([low <= 0 <= high for low, high in ends]) >= 0.94
    assert verdicts.count("better") / trials <= most_better


@pytest.mark.parametrize("variance, half", [(1 / 3, 2.6662), (1.0, 3.1717), (3.0, 4.4467)])
def test_interval_by_hand(variance, half):
    """Seeds 1, 2, 3: s^2 / S = 1/3, t_2 = 4.3027. 11 examples: t_10 = 2.2281. With v = 1 the mean t is 2.7468."""
    np.testing.assert_allclose(interval(np.array([1.0, 2.0, 3.0]), variance, 11), (2 - half, 2 + half), atol=1e-4)


def test_variance_of_the_examples_is_that_of_the_mean_over_seeds():
    """Two seeds whose examples differ in opposite ways: their mean does not depend on the examples."""
    ours = Scores(np.array([1.0, 1.0]), np.array([[0.0, 2.0, 0.5], [2.0, 0.0, 1.5]]), examples=50)
    theirs = Scores(np.zeros(2), np.zeros((2, 3)), examples=50)
    assert difference(ours, theirs, True).interval == (1.0, 1.0)
    alike = Scores(np.array([1.0, 1.0]), np.array([[0.0, 2.0, 1.0]] * 2), examples=50)  # variance 1
    np.testing.assert_allclose(difference(alike, theirs, True).interval, stats.t.interval(0.95, 49, 1.0, 1.0))


def test_pairing_cancels_the_difficulty_of_examples():
    """Hard examples are hard for both models."""
    rng = np.random.default_rng(1)
    common, own = 10 * rng.normal(size=400), 0.1 * rng.normal(size=400)
    ours, theirs = (scores(MEAN, [outcome_of(values)], 400) for values in (common + own + 0.1, common))
    one = difference(ours, theirs, True)
    assert one.mean == pytest.approx(own.mean() + 0.1) and one.verdict == "better"
    half = stats.t.ppf(0.975, 399) * own.std() / 20  # the bootstrap's variance of a mean is that of the population
    assert one.interval[1] - one.interval[0] == pytest.approx(2 * half, rel=0.15)


@settings(max_examples=30)
@given(floats, floats)
def test_exchanged_models_have_the_opposite_verdict(a, b):
    size = min(len(a), len(b))
    ours, theirs = (Scores(x[:size], np.tile(x[:size, None], 3), examples=9) for x in (a, b))
    one, other = difference(ours, theirs, True), difference(theirs, ours, True)
    opposite = {"better": "worse", "worse": "better"}
    assert other.verdict == opposite.get(one.verdict, one.verdict)
    assert one.verdict == difference(theirs, ours, False).verdict
    assert one.seeds == tuple(-x for x in other.seeds)


def test_model_does_not_differ_from_itself():
    same = Scores(np.array([1.0, 2.0]), np.zeros((2, 4)), examples=5)
    assert difference(same, same, True) == Difference(0.0, (0.0, 0.0), (0.0, 0.0), "no difference seen")


def test_metric_without_direction_has_no_verdict():
    assert verdict(np.array([5.0]), 4.0, 6.0, None) == "–"
