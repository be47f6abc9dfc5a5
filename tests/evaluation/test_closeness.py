"""Closeness metrics: identities, closed forms, exact counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.evaluation.closeness import (
    BINS,
    calibration,
    calibration_error,
    compare,
    compare_cached,
    compare_cached_step,
    compare_step,
    mean_metrics,
)
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.signals.topk import TopK
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.types import Sum
from tests.helpers.batches import random_examples, to_batch
from tests.helpers.families import FAMILIES

RNG = np.random.default_rng(0)
TEACHER, STUDENT = (jnp.asarray(RNG.normal(size=(9, 7)), jnp.float32) for _ in range(2))
TARGETS = jnp.asarray(RNG.integers(0, 7, 9), jnp.int32)
MASK = jnp.asarray([True] * 6 + [False] * 3)


def identity(tree):
    """The sum over one device."""
    return tree


def test_mask_equals_slice():
    masked = compare(TEACHER, STUDENT, TARGETS, MASK)
    sliced = compare(TEACHER[:6], STUDENT[:6], TARGETS[:6], jnp.ones(6, bool))
    for name, one in masked.items():
        np.testing.assert_allclose(one.mean(), sliced[name].mean(), rtol=1e-6)


def test_model_compared_with_itself():
    itself = compare(TEACHER, TEACHER, TARGETS, MASK)
    assert abs(itself["kl_to_teacher"].mean()) < 1e-6 and itself["agreement"].mean() == 1


def test_sum_counts_beyond_16_bits():
    counted = jax.jit(Sum.over)(jnp.ones(65_537), jnp.ones(65_537, bool))
    assert int(counted.weight) == 65_537 and float(counted.value) == 65_537


def test_mean_of_nothing_is_zero():
    assert Sum(np.float32(0), np.int32(0)).mean() == 0


def test_acceptance_is_the_common_probability():
    teacher, student = (np.asarray(jax.nn.softmax(x[:6])) for x in (TEACHER, STUDENT))
    want = np.minimum(teacher, student).sum(-1).sum() / 6  # speculative decoding's acceptance rate
    np.testing.assert_allclose(compare(TEACHER, STUDENT, TARGETS, MASK)["acceptance"].mean(), want, rtol=1e-5)
    assert compare(TEACHER, TEACHER, TARGETS, MASK)["acceptance"].mean() == 1


def with_confidence(confidence_N):
    """Logits over 7 ids where id 0 has this probability and the others share the rest."""
    return jnp.asarray(np.log(np.stack([confidence_N, *[(1 - confidence_N) / 6] * 6], 1)), jnp.float32)


def test_calibration_error_closed_form():
    """Ten tokens of confidence 0.9, seven correct, ten of 0.5, five correct: |0.7 - 0.9| / 2; parts add up."""
    logits = with_confidence(np.repeat([0.9, 0.5], 10))
    targets = jnp.asarray([0] * 7 + [1] * 3 + [0] * 5 + [1] * 5, jnp.int32)
    bins = calibration(logits, targets, jnp.ones(20, bool))
    assert bins.value.shape == (BINS,)
    np.testing.assert_allclose(calibration_error(jax.device_get(bins)), 0.1, rtol=1e-5)
    halves = [calibration(logits[at], targets[at], jnp.ones(10, bool)) for at in (slice(0, 20, 2), slice(1, 20, 2))]
    added = jax.device_get(jax.tree.map(jnp.add, *halves))
    np.testing.assert_allclose(calibration_error(added), 0.1, rtol=1e-5)


def test_calibration_errors_of_neighbouring_bins_do_not_cancel():
    """Ten tokens of confidence 0.69, all correct, in bin 10 of 15; ten of 0.76, all wrong, in bin 11.

    (10 |1 - 0.69| + 10 |0 - 0.76|) / 20; in one bin it would be |0.5 - 0.725|.
    """
    logits = with_confidence(np.repeat([0.69, 0.76], 10))
    targets = jnp.asarray([0] * 10 + [1] * 10, jnp.int32)
    bins = jax.device_get(calibration(logits, targets, jnp.ones(20, bool)))
    np.testing.assert_allclose(bins.value[[10, 11]], [3.1, -7.6], rtol=1e-5)
    assert bins.weight.tolist() == [0] * 10 + [10, 10] + [0] * 3
    np.testing.assert_allclose(calibration_error(bins), 0.535, rtol=1e-5)


V = 60
SMALL = EncoderDecoder(encoder_layers=1, decoder_layers=1, d_model=8, heads=2, d_ff=8, dropout=0.0)


def counted_examples():
    """Two whose first two targets do not count."""
    examples = random_examples(0, [(4, 6), (2, 3)], V)
    return [e._replace(counts=np.arange(len(e.counts)) > len(e.prompt) + 1) for e in examples]


def test_compare_step_of_two_families_equals_compare():
    """Each model has rows of its own layout; either may be the teacher."""
    models = [architecture.build(V) for architecture in FAMILIES.values()]
    params = [jax.jit(model.init)(jax.random.key(0)) for model in models]
    batches = [to_batch(counted_examples(), layout=architecture.layout(START)) for architecture in FAMILIES.values()]
    counted = [
        model.head(p).logits(jax.jit(model.apply)(p, batch.inputs))[batch.mask_BT]
        for model, p, batch in zip(models, params, batches, strict=True)
    ]
    targets_N = batches[0].targets_BT[batches[0].mask_BT]
    for order in (slice(None), slice(None, None, -1)):
        networks = dict(zip(("teacher", "student"), models[order], strict=True))
        step = jax.jit(functools.partial(compare_step, **networks, all_sum=identity))
        got = step(tuple(params[order]), tuple(batches[order]))
        for name, one in compare(*counted[order], targets_N, np.ones(5, bool)).items():
            np.testing.assert_allclose(got[name].value, one.value, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(got[name].weight, one.weight)


def test_steps_equal_compare_on_the_counted_targets():
    """Targets that do not count hold junk; the sums of chunks add up."""
    model = SMALL.build(V)
    params = [model.init(jax.random.key(seed)) for seed in (0, 1)]
    batch = to_batch(counted_examples())
    batch = batch._replace(targets_BT=np.where(batch.mask_BT, batch.targets_BT, 1).astype(np.int32))
    step = functools.partial(compare_step, teacher=model, student=model, all_sum=identity)
    counted = [model.head(p).logits(model.apply(p, batch.inputs))[batch.mask_BT] for p in params]
    want = compare(*counted, batch.targets_BT[batch.mask_BT], np.ones(5, bool))
    got = step(tuple(params), (batch, batch))
    for name, one in want.items():
        np.testing.assert_allclose(got[name].value, one.value, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got[name].weight, one.weight)
    signal = TopK(k=V)
    payload = {
        name: np.zeros((*batch.mask_BT.shape, *x.shape[1:]), x.dtype) for name, x in signal.reduce(counted[0]).items()
    }
    for name, x in signal.reduce(counted[0]).items():
        payload[name][batch.mask_BT] = x
    cached = compare_cached_step(
        params[1], batch._replace(payload={"topk": payload}), student=model, signal=signal, all_sum=identity
    )
    for name, one in want.items():
        np.testing.assert_allclose(cached[name].value, one.value, rtol=2e-3, atol=2e-3)  # the cache is float16
        np.testing.assert_array_equal(cached[name].weight, one.weight)


def test_cache_of_the_whole_vocabulary_has_no_error():
    teacher, student = (jnp.asarray(RNG.integers(-64, 64, (40, V)) / 16, jnp.float32) for _ in range(2))
    targets, mask = jnp.asarray(RNG.integers(0, V, 40), jnp.int32), jnp.asarray(RNG.random(40) < 0.8)
    signal = TopK(k=V)
    sums = compare_cached(signal, signal.reduce(teacher), student, targets, mask)
    for name, one in compare(teacher, student, targets, mask).items():
        np.testing.assert_allclose(sums[name].value, one.value, atol=1e-4)
    assert abs(sums["kl_error"].value) < 1e-5 and sums["acceptance_error"].value < 1e-5


def test_mean_metrics():
    bins = Sum(np.asarray([1.0, -2.0]), np.asarray([4, 6]))
    means = mean_metrics({"kl_to_teacher": Sum(np.float32(3), np.int32(4)), "calibration_error": bins})
    assert means == {"kl_to_teacher": 0.75, "calibration_error": 0.3}


def test_compare_step_holds_the_logits_of_one_chunk():
    """One row of 4096 tokens over 8000 ids: an array [N, V] is 125 MiB, all temporaries stay below two of them.

    Attention's scores, which no fused head makes smaller, are two arrays [H, T, T] of 64 MiB with one head.
    """
    tokens, vocab_size = 4096, 8000
    model = EncoderDecoder(1, 1, d_model=8, heads=1, d_ff=8, dropout=0.0).build(vocab_size)
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = to_batch(random_examples(0, [(8, tokens)], vocab_size))
    step = jax.jit(functools.partial(compare_step, teacher=model, student=model, all_sum=identity))
    used = step.lower((params, params), (batch, batch)).compile().memory_analysis().temp_size_in_bytes
    assert used < 2 * 4 * tokens * vocab_size
