"""Cross-entropy: trap 1 (shift), 7 (padded vocabulary), 8 (low precision)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.test_util import check_grads

from kd_jax.losses.cross_entropy import cross_entropy

N, V = 7, 11
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(N, V)) * 3, jnp.float32)
TARGETS = jnp.asarray(np.random.default_rng(1).integers(0, V, N), jnp.int32)


def test_equals_optax():
    want = optax.softmax_cross_entropy_with_integer_labels(LOGITS, TARGETS)
    np.testing.assert_allclose(cross_entropy(LOGITS, TARGETS), want, rtol=1e-6)


def test_label_smoothing_equals_smoothed_one_hot():
    labels = optax.smooth_labels(jax.nn.one_hot(TARGETS, V), 0.1)
    want = optax.softmax_cross_entropy(LOGITS, labels)
    np.testing.assert_allclose(cross_entropy(LOGITS, TARGETS, label_smoothing=0.1), want, rtol=1e-5)


def test_smoothing_is_continuous_at_zero():
    almost = cross_entropy(LOGITS, TARGETS, label_smoothing=1e-7)
    np.testing.assert_allclose(almost, cross_entropy(LOGITS, TARGETS), rtol=1e-5)


def test_gradients():
    for smoothing in (0.0, 0.1):
        check_grads(lambda x, s=smoothing: cross_entropy(x, TARGETS, s).sum(), (LOGITS,), 1, ["rev"], rtol=2e-2)


def test_tokens_are_independent():
    moved = cross_entropy(LOGITS.at[3, 2].add(1.0), TARGETS) != cross_entropy(LOGITS, TARGETS)
    assert moved.tolist() == [n == 3 for n in range(N)]


def test_padded_vocabulary_equals_sliced_and_its_gradient_is_zero():
    padded = jnp.concatenate([LOGITS, jnp.full((N, 5), -jnp.inf)], axis=1)
    for smoothing in (0.0, 0.1):
        loss = lambda x, s=smoothing: cross_entropy(x, TARGETS, s).sum()  # noqa: E731
        np.testing.assert_allclose(loss(padded), loss(LOGITS), rtol=1e-6)
        gradient = jax.grad(loss)(padded)
        assert not gradient[:, V:].any()
        np.testing.assert_allclose(gradient[:, :V], jax.grad(loss)(LOGITS), atol=1e-6)


def test_extreme_logits_and_bfloat16_stay_finite():
    extreme = jnp.where(LOGITS > 0, 100.0, -100.0)
    assert jnp.isfinite(jax.grad(lambda x: cross_entropy(x, TARGETS, 0.1).sum())(extreme)).all()
    assert cross_entropy(LOGITS.astype(jnp.bfloat16), TARGETS).dtype == jnp.float32
