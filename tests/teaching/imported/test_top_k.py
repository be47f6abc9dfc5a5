"""What is read out of log-probabilities is what `reduce` makes of the logits, where it is known at all."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.signals.topk import TopK
from kd_jax.teaching.imported.base import LogprobSource, RequiredSignal
from kd_jax.teaching.imported.readers.base import NO_TOKEN
from kd_jax.teaching.imported.top_k import LEAST, refuse_unknown, top_k

N, V = 4, 13
# Multiples of 1/16, which float16 holds exactly; a permutation, so that no two of a position are equal.
LOGITS = np.stack([np.random.default_rng(n).permutation(V) for n in range(N)]).astype(np.float32) / 4
FEW = settings(max_examples=20, deadline=None)


def named(count, temperature=1.0, seed=0):
    """The `count` likeliest of each position in any order, and their log-probabilities at a temperature."""
    order = np.argsort(-LOGITS, axis=-1)[:, :count]
    order = np.random.default_rng(seed).permuted(order, axis=-1)
    logp_NV = np.asarray(jax.nn.log_softmax(LOGITS / np.float32(temperature)))
    return order, np.take_along_axis(logp_NV, order, -1)


def wanted(*temperatures):
    return RequiredSignal(TopK(k=3), dict.fromkeys(temperatures, "terms.kd"))


@given(st.integers(1, V), st.integers(1, V), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 3))
@FEW
def test_it_is_what_the_teacher_here_would_store(k, count, temperature, seed):
    """At the files' own temperature from any number of at least k, in any order."""
    k, count = min(k, count), max(k, count)
    source = LogprobSource("vllm", temperature, "processed")
    got = top_k(*named(count, temperature, seed), k, V, source, (temperature,))
    want = TopK(k=k, temperature=temperature).reduce(LOGITS)
    assert got.keys() == want.keys()
    np.testing.assert_array_equal(got["ids"], want["ids"])
    np.testing.assert_allclose(got["logits"], np.asarray(want["logits"], np.float32), atol=2e-6)
    rest = f"rest_t{temperature:g}"
    np.testing.assert_allclose(got[rest], np.asarray(want[rest]), atol=1e-4, rtol=1e-4)


@given(st.integers(1, V), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from(["vllm", "maxtext"]))
@FEW
def test_the_whole_vocabulary_says_the_rest_at_any_temperature(k, temperature, form):
    ids, logp = named(V)
    source = LogprobSource(form, 1.0, "raw")
    refuse_unknown("f", ids, V, source, wanted(temperature))
    got = top_k(ids, logp + (5.0 if form == "maxtext" else 0.0), k, V, source, (temperature,))
    want = TopK(k=k, temperature=temperature).reduce(LOGITS)
    rest = f"rest_t{temperature:g}"
    np.testing.assert_allclose(got[rest], np.asarray(want[rest]), atol=1e-5)


@given(st.integers(1, V), st.integers(0, V))
@FEW
def test_places_that_are_left_hold_other_ids_without_mass(k, count):
    ids, logp = named(count)
    got = top_k(ids, logp, k, V, LogprobSource("vllm", 1.0, "raw"), (1.0,))
    assert all(len(set(row)) == k and set(row) <= set(range(V)) for row in got["ids"].tolist())
    assert (np.isneginf(got["logits"]).sum(-1) == max(0, k - count)).all()
    aligned = TopK(k=k).align(LOGITS, {"ids": got["ids"], "logits": got["logits"], "rest_t1": got["rest_t1"]}, 1.0)
    np.testing.assert_allclose(np.exp(aligned.teacher_logp_NK).sum(-1), 1.0, rtol=1e-5)
    if count > 0:
        np.testing.assert_allclose(aligned.teacher_logp_NK, aligned.student_logp_NK, atol=2e-4)


def test_what_is_lacking_to_one_is_never_nothing():
    """Log-probabilities that add up to one, or a little more, in rounding: the rest is as good as none, and finite."""
    ids, logp = np.asarray([[3, 5]]), np.log([[0.6, 0.4004]])
    got = top_k(ids, logp, 2, V, LogprobSource("vllm", 1.0, "raw"), (1.0,))
    np.testing.assert_allclose(got["rest_t1"], np.log(LEAST / 0.6), rtol=1e-5)


def test_an_unknown_rest_is_refused_by_what_needs_it():
    ids, _ = named(3)
    nothing = np.full_like(ids, NO_TOKEN)
    for source, temperature, reason in (
        (LogprobSource("maxtext", 1.0, "raw"), 1.0, r"names 3 of 13 tokens \(logits, no log Z\).*which terms.kd needs"),
        (LogprobSource("vllm", 1.0, "raw"), 2.0, r"f: names 3 of 13 tokens.*at temperature 2"),
    ):
        with pytest.raises(KdError, match=reason):
            refuse_unknown("f", ids, V, source, wanted(temperature))
        refuse_unknown("f", ids, V, source, wanted())
        refuse_unknown("f", nothing, V, source, wanted(temperature))  # a missing position teaches nothing
    refuse_unknown("f", ids, V, LogprobSource("sglang", 2.0, "processed"), wanted(2.0))
