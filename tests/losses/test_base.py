"""How losses are called, and checks of their options."""

import functools
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.errors import KdError
from kd_jax.losses import divergence
from kd_jax.losses.base import Range, check_options, comparison, function_of, name_of, option_ranges, options_at
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl, jensen_shannon
from kd_jax.losses.features import cosine, mse
from kd_jax.schedules import Schedule

P, Q = jnp.log(jnp.asarray([[0.9, 0.1]])), jnp.log(jnp.asarray([[0.5, 0.5]]))
FORWARD_KL = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)


def test_the_teacher_comes_first():
    np.testing.assert_allclose(comparison(forward_kl, {})(P, Q), [FORWARD_KL], rtol=1e-5)
    np.testing.assert_allclose(
        comparison(lambda teacher, student: (teacher - 2 * student)[:, 0], {})(P, Q), P[0, :1] - 2 * Q[0, :1]
    )


def test_optax_losses_get_the_student_as_predictions():
    np.testing.assert_allclose(
        comparison(optax.losses.kl_divergence_with_log_targets, {})(P, Q), [FORWARD_KL], rtol=1e-5
    )
    teacher, student = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[2.0, -1.0]])
    np.testing.assert_allclose(comparison(optax.losses.cosine_distance, {})(teacher, student), [1.0], rtol=1e-6)


def test_options_and_the_keywords_of_a_partial_reach_the_loss():
    want = jensen_shannon(P, Q, beta=0.3)
    partial = functools.partial(jensen_shannon, beta=0.3)
    np.testing.assert_array_equal(comparison(partial, {})(P, Q), want)
    np.testing.assert_array_equal(comparison(jensen_shannon, {"beta": 0.3})(P, Q), want)
    assert function_of(partial) is jensen_shannon and function_of(jensen_shannon) is jensen_shannon
    assert name_of(jensen_shannon) == "jensen_shannon"


def test_shared_arrays_are_no_options():
    assert option_ranges(cross_entropy) == {"label_smoothing": Range(0.0, 0.99)}
    assert option_ranges(mse) == option_ranges(cosine) == {}


@pytest.mark.parametrize(
    "loss, options, message",
    [
        (cross_entropy, {"label_smothing": 0.1}, r"options\.label_smothing: .*\(label_smoothing\), .*Did you mean"),
        (cross_entropy, {"log_z_N": 0.1}, r"options\.log_z_N: expected an option of cross_entropy"),
        (mse, {"beta": 0.1}, r"options\.beta: expected an option of mse \(it has none\), got beta\. Remove it"),
        (
            cross_entropy,
            {"label_smoothing": float("nan")},
            r"label_smoothing: expected a number in \[0, 0\.99\], got nan",
        ),
        (cross_entropy, {"label_smoothing": "0.1"}, "label_smoothing: expected a number in .*, got '0.1'"),
        (cross_entropy, {"label_smoothing": True}, "label_smoothing: expected a number in .*, got True"),
        (cross_entropy, {"label_smoothing": 1.0}, "label_smoothing: .*got 1.0"),
        (divergence.jensen_shannon, {"beta": -0.1}, r"options\.beta: expected a number in \[0, 1\], got -0\.1"),
        (functools.partial(jensen_shannon, beta=-0.1), {}, r"options\.beta: expected a number in \[0, 1\], got -0\.1"),
        (functools.partial(jensen_shannon, bata=0.1), {}, r"options\.bata: .*Did you mean beta"),
        (divergence.skewed_forward_kl, {"alpha": 1.0}, r"options\.alpha: .*got 1\.0"),
        (divergence.skewed_reverse_kl, {"alpha": 1.0}, r"options\.alpha: .*got 1\.0"),
    ],
)
def test_bad_options_are_refused(loss, options, message):
    with pytest.raises(KdError, match=message):
        check_options(loss, options)


@pytest.mark.parametrize(
    "t",
    [0.0, 1, Schedule(0.4, 1.0, steps=10), optax.linear_schedule(0.0, 1.0, 10)],
    ids=["0.0", "1", "Schedule", "optax"],
)
def test_a_schedule_may_give_an_option_that_allows_it(t):
    check_options(divergence.taid, {"t": t})


@pytest.mark.parametrize(
    "loss, options, message",
    [
        (
            divergence.taid,
            {"t": Schedule(0.4, 1.5, steps=10)},
            r"options\.t\.end: expected a number in \[0, 1\], got 1\.5",
        ),
        (divergence.taid, {"t": Schedule(0.4, 1.0, steps=0)}, r"options\.t\.steps: expected an integer"),
        (
            divergence.taid,
            {"t": lambda step: jnp.float32(2.0)},
            r"options\.t: expected a finite number in \[0, 1\], got 2\.0",
        ),
        (divergence.taid, {"t": -0.1}, r"options\.t: expected a number in \[0, 1\], got -0\.1"),
        (
            jensen_shannon,
            {"beta": Schedule(0.0, 1.0, steps=10)},
            r"options\.beta: expected a number in \[0, 1\], got Sch",
        ),
        (functools.partial(divergence.taid, t=Schedule(0.4, 1.0, steps=10)), {}, r"options\.t: expected a number in"),
    ],
)
def test_schedules_out_of_range_or_of_other_options_are_refused(loss, options, message):
    with pytest.raises(KdError, match=message):
        check_options(loss, options)


def test_options_at_keeps_numbers_and_evaluates_schedules():
    options = options_at({"a": 0.5, "b": Schedule(0.0, 1.0, steps=4), "c": lambda step: 2 * step}, 3)
    assert options == {"a": 0.5, "b": 0.75, "c": 6} and isinstance(options["a"], float)


def test_bounds_of_a_range_are_allowed_and_options_without_a_range_have_none():
    def power(teacher_NX, student_NX, exponent: Annotated[float, Range(1.0, 4.0)] = 2.0, scale: float = 1.0):
        raise NotImplementedError

    check_options(power, {"exponent": 1.0, "scale": -1e9})
    check_options(power, {"exponent": np.float32(4.0)})
    with pytest.raises(KdError, match=r"options\.exponent: expected a number in \[1, 4\], got 4\.5"):
        check_options(power, {"exponent": 4.5})


def test_an_option_takes_the_place_of_the_keyword_of_a_partial():
    """As in a call: functools.partial's keyword is not used, so its value is not checked."""
    check_options(functools.partial(jensen_shannon, beta=7.0), {"beta": 0.5})
    np.testing.assert_allclose(
        comparison(functools.partial(jensen_shannon, beta=7.0), {"beta": 0.5})(P, Q), jensen_shannon(P, Q, beta=0.5)
    )
    with pytest.raises(KdError, match=r"options\.beta: expected a number in \[0, 1\], got 7"):
        check_options(functools.partial(jensen_shannon, beta=0.5), {"beta": 7.0})
