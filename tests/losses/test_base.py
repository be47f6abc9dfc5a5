"""A loss says by its signature what it compares and which options it has; the pass over the vocabulary."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.losses import divergence
from kd_jax.losses.base import Range, check_options, kind, logp_with_rest, option_ranges, split
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.features import cosine, mse

KINDS = [(cross_entropy, "targets"), (mse, "vectors"), (cosine, "vectors")]
KINDS += [(loss, "divergence") for loss in divergence.ALL]


@pytest.mark.parametrize("loss, name", KINDS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_loss_says_its_kind(loss, name):
    assert kind(loss) == name


def test_what_is_no_loss_is_refused():
    for loss, message in (
        ("forward_kl", "loss: 'forward_kl', a str; wanted a function"),
        (None, "loss: None"),
        (lambda a, b: a, r"loss: .*<lambda>\(a, b, \.\.\.\); wanted \(logits_NV, targets_N, \.\.\.\) for targets"),
        (np.square, "loss: square"),
    ):
        with pytest.raises(KdError, match=message):
            kind(loss)


def test_arrays_passed_on_between_terms_are_no_options():
    assert option_ranges(cross_entropy) == {"label_smoothing": Range(0.0, 0.99)}
    assert option_ranges(mse) == {}


@pytest.mark.parametrize(
    "loss, options, message",
    [
        (cross_entropy, {"label_smothing": 0.1}, r"options\.label_smothing: .*has label_smoothing; did you mean"),
        (cross_entropy, {"log_z_N": 0.1}, r"options\.log_z_N: no option of cross_entropy"),
        (mse, {"beta": 0.1}, r"options\.beta: no option of mse, which has none; leave it out"),
        (cross_entropy, {"label_smoothing": float("nan")}, r"label_smoothing: nan; wanted a number from 0 to 0\.99"),
        (cross_entropy, {"label_smoothing": "0.1"}, "label_smoothing: '0.1'; wanted a number"),
        (cross_entropy, {"label_smoothing": True}, "label_smoothing: True; wanted a number"),
        (cross_entropy, {"label_smoothing": 1.0}, "label_smoothing: 1.0"),
        (divergence.jensen_shannon, {"beta": -0.1}, r"options\.beta: -0\.1; wanted a number from 0 to 1"),
        (divergence.skewed_forward_kl, {"alpha": 1.0}, r"options\.alpha: 1\.0"),
        (divergence.skewed_reverse_kl, {"alpha": 1.0}, r"options\.alpha: 1\.0"),
    ],
)
def test_bad_options_are_refused(loss, options, message):
    with pytest.raises(KdError, match=message):
        check_options(loss, options)


def test_the_ends_of_a_range_are_allowed_and_ones_own_loss_has_its_own():
    def power(teacher_NX, student_NX, exponent: Annotated[float, Range(1.0, 4.0)] = 2.0, scale: float = 1.0):
        raise NotImplementedError

    check_options(power, {"exponent": 1.0, "scale": -1e9})
    check_options(power, {"exponent": np.float32(4.0)})
    with pytest.raises(KdError, match=r"options\.exponent: 4\.5; wanted a number from 1 to 4"):
        check_options(power, {"exponent": 4.5})


def log_softmax_on_support(logits_NV, ids_NK):
    """Float64: log-probabilities at the ids and, last, of all others together."""
    at_ids = np.take_along_axis(logits_NV, ids_NK, -1)
    outside = logits_NV.copy()
    np.put_along_axis(outside, ids_NK, -np.inf, -1)
    joined = np.concatenate([at_ids, np.logaddexp.reduce(outside, -1, keepdims=True)], -1)
    return joined - np.logaddexp.reduce(joined, -1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("high", ["inside the support", "outside the support"])
def test_log_probabilities_with_rest_bear_spreads_of_100(high, temperature):
    """Trap 16: the shift of a log-sum-exp lies in the set that it sums over."""
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


def test_a_support_that_leaves_nothing_out_has_finite_gradients():
    logits, ids = jnp.asarray([[0.0, 1.0, -jnp.inf]]), jnp.asarray([[0, 1]])
    assert split(logits, ids)[1].tolist() == [-jnp.inf]
    gradient = jax.grad(lambda x: jnp.where(ids >= 0, logp_with_rest(x, ids)[0][:, :2], 0.0).sum())(logits)
    np.testing.assert_allclose(gradient, [[1 - 2 / (1 + np.e), 1 - 2 * np.e / (1 + np.e), 0.0]], atol=1e-6)
