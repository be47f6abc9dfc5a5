"""A loss says by its signature what it compares and which options it has; the pass over the vocabulary."""

from typing import Annotated

import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.losses import divergence
from kd_jax.losses.base import Range, check_options, kind, option_ranges
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.features import cosine, mse

KINDS = [(cross_entropy, "targets"), (mse, "vectors"), (cosine, "vectors")]
KINDS += [(loss, "divergence") for loss in divergence.ALL]


@pytest.mark.parametrize("loss, name", KINDS, ids=lambda x: str(x))
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
