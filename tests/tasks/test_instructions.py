"""Instructions: tokens that count, their bits per byte, the baseline, and invalid fields."""

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
def test_bits_per_byte_has_the_bytes_of_the_tokens_that_count(counted, prompt_counts, size):
    task = Instructions(counted=counted)
    (encoded,) = task.encode(EXAMPLE, Letters())
    assert encoded.counts.tolist() == [prompt_counts] * 9 + [True] * 4
    outcome = Outcome([EXAMPLE], [], [["Été"]], np.array([10 * math.log(2)]), np.array([4]))
    rouge_l, bits = task.metrics
    assert (rouge_l.name, bits.name, bits.higher_is_better) == ("rouge_l", "bits_per_byte", False)
    assert bits.score(outcome, 0).value == pytest.approx(10 / size)


def test_prompt_alone_has_the_ids_of_prompt_with_response():
    """Trap 14: an end token separates the two, so no token spans both."""
    task = Instructions()
    alone = task.encode_prompt(task.prompt(EXAMPLE), Letters())
    assert alone.tolist() == next(task.encode(EXAMPLE, Letters())).prompt.tolist()
    assert alone[-1] == Letters.eos


def test_baseline_is_the_instruction():
    echo = Instructions().baselines["echo"](EXAMPLE)
    assert echo == "Name it."
    assert Instructions().similarity(echo, "name it now") == pytest.approx(100 * 2 * 2 / 5)


@pytest.mark.parametrize(
    "task, message",
    [
        (
            Instructions(response="prompt"),
            r"task\.response: expected another field .*, got 'prompt'",
        ),
        (Instructions(counted=""), r"task\.counted: expected completion or all, got ''"),
    ],
)
def test_invalid_fields_are_refused(task, message):
    with pytest.raises(KdError, match=message):
        task.check()
    assert Instructions().decoding.sampling == Sampling(temperature=0.0)
