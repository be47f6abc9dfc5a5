"""The task: the loss is on the response; bits per byte are of what counts."""

import math

import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.tasks.base import Sampling
from kd_jax.tasks.instructions import Instructions
from kd_jax.tasks.metrics import Outcome
from tests.tasks.letters import Letters

EXAMPLE = {"prompt": "Name it.", "response": "Été"}


@pytest.mark.parametrize("counted, prompt_counts, size", [("completion", False, 5), ("all", True, 13)])
def test_what_counts_is_paid_for_by_its_own_bytes(counted, prompt_counts, size):
    task = Instructions(counted=counted)
    (encoded,) = task.encode(EXAMPLE, Letters())
    assert encoded.counts.tolist() == [prompt_counts] * 9 + [True] * 4
    outcome = Outcome([EXAMPLE], [], [["Été"]], np.array([10 * math.log(2)]), np.array([4]))
    rouge_l, bits = task.metrics
    assert (rouge_l.name, bits.name, bits.higher_is_better) == ("rouge_l", "bits_per_byte", False)
    assert bits.score(outcome, 0).value == pytest.approx(10 / size)


def test_a_prompt_alone_is_encoded_as_with_its_response():
    """Trap 14: an end parts the two, so no token reaches across."""
    task = Instructions()
    alone = task.encode_prompt(task.prompt(EXAMPLE), Letters())
    assert alone.tolist() == next(task.encode(EXAMPLE, Letters())).prompt.tolist()
    assert alone[-1] == Letters.eos


def test_the_echo_is_a_baseline():
    echo = Instructions().baselines["echo"](EXAMPLE)
    assert echo == "Name it."
    assert Instructions().closeness(echo, "name it now") == pytest.approx(100 * 2 * 2 / 5)


@pytest.mark.parametrize(
    "task, message",
    [
        (Instructions(response="prompt"), r"task\.response: 'prompt', as task\.instruction; wanted two fields"),
        (Instructions(counted=""), r"task\.counted: ''; wanted completion or all"),
    ],
)
def test_what_does_not_fit_is_told(task, message):
    with pytest.raises(KdError, match=message):
        task.check()
    assert Instructions().decoding.sampling == Sampling(temperature=0.0)
