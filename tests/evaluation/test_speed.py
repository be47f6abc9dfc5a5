"""Timing: which prompts, which rounds, which tokens."""

import itertools

import numpy as np
import pytest

from kd_jax.decoding.base import NO_TOKEN
from kd_jax.evaluation import speed
from kd_jax.evaluation.speed import Timing
from kd_jax.runtime.backends import make_devices


def test_prompts_have_the_most_common_padded_length():
    prompts = [np.zeros(length, np.int32) for length in (3, 9, 4, 30, 10, 16, 99)]
    assert speed._most_common_width(prompts, (8, 16, 32)) == [1, 4, 5]


def test_medians_leave_out_the_first_round():
    seconds = iter([100.0, 5.0, 1.0, 3.0, 2.0, 4.0])
    order = itertools.count()
    rounds = {"a": [], "b": []}

    def call(name):
        rounds[name].append(next(order))
        return Timing(next(seconds) if name == "a" else 1.0, tokens=7)

    timings = speed._median_timings({name: lambda name=name: call(name) for name in rounds}, "test")
    assert timings == {"a": Timing(3.0, 7), "b": Timing(1.0, 7)}
    assert rounds == {"a": [0, 2, 4, 6, 8, 10], "b": [1, 3, 5, 7, 9, 11]}  # in turn


@pytest.mark.parametrize("repeats", [1, 2])
def test_padding_after_the_end_is_no_token(repeats):
    ids = np.array([[5, 6, 2], [5, 2, NO_TOKEN], [NO_TOKEN] * 3])
    timing = speed._time_once(lambda params, batch: ids, None, [None] * repeats, make_devices("jit"))
    assert timing.tokens == 5 * repeats and timing.seconds > 0
