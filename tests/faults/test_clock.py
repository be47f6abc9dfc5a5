"""A clock that jumps while orbax saves a checkpoint, as after a suspended machine, costs no more than some steps."""

import sys
import time

import pytest

from kd_jax.artifacts.workdir import Workdir
from kd_jax.phases import prepare, teacher
from tests.helpers.runs import linked_run, smoke

JUMP = 10_000.0  # seconds; orbax gives up after 1200
STEPS = "--teacher.training.steps 6 --teacher.training.eval-every 3 --teacher.training.optimizer.warmup 2"


@pytest.mark.extended
def test_training_survives_a_jump_of_the_clock(root, tmp_path, monkeypatch, capsys, lax_promotion):
    experiment = smoke(root, STEPS.split())
    steady = Workdir(tmp_path / "steady")
    prepare.run(experiment, steady)
    jumped = linked_run(steady, tmp_path / "jumped", "data")
    teacher.run(experiment, steady)

    real_time, offset = time.time, [0.0]

    def jumping_time():
        if sys._getframe(1).f_code.co_name == "get_remaining_time":  # orbax's, while it waits for what it writes
            offset[0] = JUMP
        return real_time() + offset[0]

    monkeypatch.setattr(time, "time", jumping_time)
    teacher.run(experiment, jumped)
    assert offset[0] and "saving a checkpoint timed out" in capsys.readouterr().err
    outputs = [workdir.model("teacher").outputs() for workdir in (steady, jumped)]
    assert outputs[0]["digest"] == outputs[1]["digest"] and outputs[0]["best_step"] == outputs[1]["best_step"]
