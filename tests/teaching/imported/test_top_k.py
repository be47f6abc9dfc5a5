"""TopK's fields from log-probabilities equal those that `reduce` makes of the logits, where they are known."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.signals.topk import TopK
from kd_jax.teaching.imported.base import LogprobSource, RequiredSignal
from kd_jax.teaching.imported.match import TargetLogprobs
from kd_jax.teaching.imported.readers.base import NO_TOKEN
from kd_jax.teaching.imported.top_k import MIN_REST, check_rests_known, top_k_fields

N, V = 4, 13
# Multiples of 1/16, which float16 holds exactly; a permutation, so that no two of a position are equal.
LOGITS = np.stack([np.random.default_rng(n).permutation(V) for n in range(N)]).astype(np.float32) / 4
FEW = settings(max_examples=20, deadline=None)


def named(count, temperature=1.0, seed=0):
    """Return the `count` most likely tokens of each position in any order, with their log-probabilities."""
    order = np.argsort(-LOGITS, axis=-1)[:, :count]
    order = np.random.default_rng(seed).permuted(order, axis=-1)
    logp_NV = np.asarray(jax.nn.log_softmax(LOGITS / np.float32(temperature)))
    return TargetLogprobs(order, np.take_along_axis(logp_NV, order, -1))


def required(*temperatures):
    return RequiredSignal(TopK(k=3), dict.fromkeys(temperatures, "terms.kd"))


@given(st.integers(1, V), st.integers(1, V), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 3))
@FEW
def test_fields_equal_those_of_a_cache(k, count, temperature, seed):
    """At the files' own temperature, from at least k named tokens in any order."""
    k, count = min(k, count), max(k, count)
    source = LogprobSource("vllm", temperature, "processed")
    fields = top_k_fields(named(count, temperature, seed), k, V, source, (temperature,))
    expected = TopK(k=k, temperature=temperature).reduce(LOGITS)
    assert fields.keys() == expected.keys()
    np.testing.assert_array_equal(fields["ids"], expected["ids"])
    np.testing.assert_allclose(fields["logits"], np.asarray(expected["logits"], np.float32), atol=2e-6)
    rest = f"rest_t{temperature:g}"
    np.testing.assert_allclose(fields[rest], np.asarray(expected[rest]), atol=1e-4, rtol=1e-4)


@given(st.integers(1, V), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from(["vllm", "maxtext"]))
@FEW
def test_whole_vocabulary_gives_the_rest_at_any_temperature(k, temperature, form):
    ids, logp = named(V)
    source = LogprobSource(form, 1.0, "raw")
    check_rests_known("f", ids, V, source, required(temperature))
    shifted = TargetLogprobs(ids, logp + (5.0 if form == "maxtext" else 0.0))
    fields = top_k_fields(shifted, k, V, source, (temperature,))
    expected = TopK(k=k, temperature=temperature).reduce(LOGITS)
    rest = f"rest_t{temperature:g}"
    np.testing.assert_allclose(fields[rest], np.asarray(expected[rest]), atol=1e-5)


@given(st.integers(1, V), st.integers(0, V))
@FEW
def test_missing_entries_are_filled_with_other_ids_without_mass(k, count):
    fields = top_k_fields(named(count), k, V, LogprobSource("vllm", 1.0, "raw"), (1.0,))
    assert all(len(set(row)) == k and set(row) <= set(range(V)) for row in fields["ids"].tolist())
    assert (np.isneginf(fields["logits"]).sum(-1) == max(0, k - count)).all()
    aligned = TopK(k=k).align(LOGITS, fields, 1.0)
    np.testing.assert_allclose(np.exp(aligned.teacher_logp_NK).sum(-1), 1.0, rtol=1e-5)
    if count > 0:
        np.testing.assert_allclose(aligned.teacher_logp_NK, aligned.student_logp_NK, atol=2e-4)


def test_rest_of_probabilities_that_sum_to_one_is_finite():
    """Rounding may bring the sum of probabilities to one or a little above."""
    logprobs = TargetLogprobs(np.asarray([[3, 5]]), np.log([[0.6, 0.4004]]))
    fields = top_k_fields(logprobs, 2, V, LogprobSource("vllm", 1.0, "raw"), (1.0,))
    np.testing.assert_allclose(fields["rest_t1"], np.log(MIN_REST / 0.6), rtol=1e-5)


def test_unknown_rest_is_rejected_with_the_field_that_needs_it():
    ids, _ = named(3)
    missing = np.full_like(ids, NO_TOKEN)
    for source, temperature, reason in (
        (LogprobSource("maxtext", 1.0, "raw"), 1.0, "which terms.kd needs, got logits without log Z of 3 of 13 tokens"),
        (LogprobSource("vllm", 1.0, "raw"), 2.0, "f: expected .* at temperature 2, which .* of 3 of 13 tokens"),
    ):
        with pytest.raises(KdError, match=reason):
            check_rests_known("f", ids, V, source, required(temperature))
        check_rests_known("f", ids, V, source, required())
        check_rests_known("f", missing, V, source, required(temperature))  # a missing position is skipped
    check_rests_known("f", ids, V, LogprobSource("sglang", 2.0, "processed"), required(2.0))
