"""Learning rates, decay, clipping and Adam in closed form; checks of the fields."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.optim.optimizer import Optimizer

pytestmark = pytest.mark.usefixtures("lax_promotion")
PLAIN = Optimizer(learning_rate=1.0, warmup=1, schedule="constant", clip_norm=1e9)


def updates(optimizer, params, *gradients):
    """Return the update of each gradient in turn, in a run of ten updates."""
    tx, params = optimizer.build(10), {name: jnp.asarray(value) for name, value in params.items()}
    state, changes = tx.init(params), []
    for gradient in gradients:
        change, state = tx.update({name: jnp.asarray(value) for name, value in gradient.items()}, state, params)
        changes.append(change)
    return changes


@pytest.mark.parametrize(
    "schedule, rates",
    [
        # After 4 updates of warm-up 8 remain: the cosine is at a quarter at 6, at half at 8, at its end at 12.
        ("cosine", {6: 0.2 + 0.6 * (1 + math.sqrt(0.5)) / 2, 8: 0.5, 12: 0.2, 20: 0.2}),
        ("rsqrt", {5: 0.8 * math.sqrt(4 / 5), 9: 0.8 * 2 / 3, 12: 0.8 / math.sqrt(3)}),
        ("constant", {5: 0.8, 12: 0.8}),
    ],
)
def test_the_learning_rate_in_closed_form(schedule, rates):
    rate = Optimizer(learning_rate=0.8, warmup=4, schedule=schedule, final_fraction=0.25).rate(12)
    warm = {1: 0.2, 2: 0.4, 3: 0.6, 4: 0.8}
    for number, expected in (warm | rates).items():
        np.testing.assert_allclose(rate(number - 1), expected, rtol=1e-6, err_msg=f"update {number}")


def test_each_update_uses_its_own_rate():
    # With a constant gradient Adam's update is the rate times the sign.
    steps = updates(dataclasses.replace(PLAIN, warmup=4), {"x": [0.0]}, *[{"x": [3.0]}] * 5)
    np.testing.assert_allclose([step["x"][0] for step in steps], [-0.25, -0.5, -0.75, -1.0, -1.0], rtol=1e-5)


def test_with_a_zero_gradient_only_matrices_decay():
    params = {"kernel": np.full((2, 3), 5.0, np.float32), "scale": np.full(3, 5.0, np.float32)}
    zero = {name: np.zeros_like(value) for name, value in params.items()}
    [change] = updates(dataclasses.replace(PLAIN, learning_rate=0.5, weight_decay=0.1), params, zero)
    np.testing.assert_allclose(change["kernel"], np.full((2, 3), -0.5 * 0.1 * 5.0), rtol=1e-6)
    assert not change["scale"].any()


@pytest.mark.parametrize("gradient, clipped", [([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])])
def test_gradients_are_clipped_by_their_norm_over_all_parameters(gradient, clipped):
    # With betas of 0 and eps = 1 an update is -g / (|g| + 1), from which g follows.
    optimizer = dataclasses.replace(PLAIN, beta1=0.0, beta2=0.0, eps=1.0, clip_norm=1.0)
    [change] = updates(optimizer, {"x": [0.0], "y": [0.0]}, {"x": gradient[:1], "y": gradient[1:]})
    expected = [-size / (size + 1) for size in clipped]
    np.testing.assert_allclose([change["x"][0], change["y"][0]], expected, rtol=1e-6)


def test_each_beta_is_the_decay_of_its_own_moment():
    optimizer = dataclasses.replace(PLAIN, beta1=0.5, beta2=0.75, eps=1e-12)
    _, second = updates(optimizer, {"x": [0.0]}, {"x": [2.0]}, {"x": [0.0]})
    # After gradients g and 0 the moments without bias are g b1 / (1 + b1) and g^2 b2 / (1 + b2).
    np.testing.assert_allclose(second["x"][0], -(1 / 3) / math.sqrt(3 / 7), rtol=1e-5)


NOT_NUMBERS = (math.nan, math.inf, -math.inf, True, "0.1", None)
OUTSIDE = {
    "learning_rate": (0.0, -1e-3),
    "final_fraction": (-0.1, 1.1),
    "beta1": (-0.1, 1.0, 2),
    "beta2": (-0.1, 1.0),
    "eps": (0.0, -1e-9),
    "weight_decay": (-0.1,),
    "clip_norm": (0.0, -1.0),
}
INVALID = [(field, value) for field, values in OUTSIDE.items() for value in (*values, *NOT_NUMBERS)]
INVALID += [("warmup", value) for value in (0, -1, 10, 11, 2.5, *NOT_NUMBERS)]
INVALID += [("schedule", value) for value in ("cosin", "", None)]


@pytest.mark.parametrize("field, value", INVALID)
def test_values_out_of_range_are_refused_in_one_line(field, value):
    optimizer = dataclasses.replace(Optimizer(warmup=2), **{field: value})
    for method in (optimizer.check, optimizer.rate, optimizer.build):
        with pytest.raises(KdError) as error:
            method(10)
        text = str(error.value)
        assert text.startswith(f"training.optimizer.{field}: expected ") and text.endswith(f", got {value!r}.")
        assert "\n" not in text


@pytest.mark.parametrize("steps", [0, 1, -3, 2.5, True, math.nan, "10"])
def test_a_run_has_at_least_two_updates(steps):
    with pytest.raises(KdError, match=r"training\.steps: expected an integer in \[2, \d+\], got"):
        Optimizer(warmup=1).check(steps)


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(warmup=1, final_fraction=0.0, beta1=0.0, beta2=0.0),
        Optimizer(warmup=9, final_fraction=1, weight_decay=0, learning_rate=1),
        Optimizer(warmup=np.int64(3), learning_rate=np.float32(0.1)),
    ],
)
def test_bounds_of_the_ranges_are_allowed(optimizer):
    optimizer.check(10)
