"""Log-probabilities on a support: values and gradients against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.support import logits_at, logits_with_rest, logp_at, logp_with_rest


def test_ids_beyond_the_vocabulary_have_no_probability():
    logits, ids = jnp.asarray([[0.0, 1.0, 2.0]]), jnp.asarray([[1, 3]])
    assert logits_at(logits, ids).tolist() == [[1.0, -jnp.inf]]
    logp, log_z = logp_at(logits, ids)
    np.testing.assert_allclose(log_z, np.logaddexp.reduce([0.0, 1.0, 2.0]), rtol=1e-6)
    np.testing.assert_allclose(logp, [[1.0 - log_z[0], -np.inf]], rtol=1e-6)


def log_softmax_on_support(logits_NV, ids_NK):
    """Float64: log-probabilities at the ids and, last, of all others together."""
    at_ids = np.take_along_axis(logits_NV, ids_NK, -1)
    outside = logits_NV.copy()
    np.put_along_axis(outside, ids_NK, -np.inf, -1)
    joined = np.concatenate([at_ids, np.logaddexp.reduce(outside, -1, keepdims=True)], -1)
    return joined - np.logaddexp.reduce(joined, -1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("high", ["inside the support", "outside the support"])
def test_rest_is_accurate_for_logits_that_differ_by_100(high, temperature):
    """Trap 16: a log-sum-exp must shift by the largest of its own summands."""
    logits = np.random.default_rng(0).normal(size=(5, 12))
    ids = np.asarray([[2, 7, 9]] * 5)
    columns = ids[0] if high == "inside the support" else np.setdiff1d(np.arange(12), ids[0])
    logits[:, columns] += 100.0
    logits = (logits / temperature).astype(np.float32)
    logp, log_z = logp_with_rest(jnp.asarray(logits), jnp.asarray(ids))
    want = log_softmax_on_support(logits.astype(np.float64), ids)
    np.testing.assert_allclose(logp, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_z, np.logaddexp.reduce(logits.astype(np.float64), -1), rtol=1e-6)
    # d log p_rest / d logit_v = [v outside] p_v / p_outside - p_v
    p = np.exp(logits - np.logaddexp.reduce(logits.astype(np.float64), -1, keepdims=True))
    share = np.exp(logits.astype(np.float64))
    np.put_along_axis(share, ids, 0.0, -1)
    got = jax.grad(lambda x: logp_with_rest(x, jnp.asarray(ids))[0][:, -1].sum())(jnp.asarray(logits))
    np.testing.assert_allclose(got, share / share.sum(-1, keepdims=True) - p, atol=1e-5)


def test_gradients_are_finite_if_the_support_covers_all_tokens():
    logits, ids = jnp.asarray([[0.0, 1.0, -jnp.inf]]), jnp.asarray([[0, 1]])
    assert logits_with_rest(logits, ids)[1].tolist() == [-jnp.inf]
    gradient = jax.grad(lambda x: jnp.where(ids >= 0, logp_with_rest(x, ids)[0][:, :2], 0.0).sum())(logits)
    np.testing.assert_allclose(gradient, [[1 - 2 / (1 + np.e), 1 - 2 * np.e / (1 + np.e), 0.0]], atol=1e-6)


def test_a_rest_without_tokens_has_no_gradient():
    """Whatever a loss makes of its log-probability of -inf."""
    logits, ids = jnp.asarray([[0.0, 1.0, -jnp.inf]]), jnp.asarray([[0, 1]])
    _, pull_back = jax.vjp(lambda x: logits_with_rest(x, ids), logits)
    for d_rest in (jnp.nan, jnp.inf, 3.0):
        assert pull_back((jnp.asarray([[0.5, 0.25]]), jnp.asarray([d_rest])))[0].tolist() == [[0.5, 0.25, 0.0]]
