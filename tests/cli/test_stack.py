"""From the command line to the function that computes a token's loss: how far a reader has to climb."""

import inspect
import traceback
from pathlib import Path

import pytest

from kd_jax.cli.main import main
from kd_jax.losses import divergence
from kd_jax.training.loop import fit
from kd_jax.training.model import train_model

CALLS, FILES = 10, 8
CONFIG = """
from kd_jax import Term, forward_kl, load_experiment, TopK
import dataclasses
smoke = load_experiment({smoke!r})
terms = {{"kd": Term(forward_kl, signal=TopK(k=4))}}
student = dataclasses.replace(smoke.students["student_scratch"], terms=terms)
experiment = dataclasses.replace(smoke, students={{"it": student}}, comparison=None)
"""
SHORT = """
--source.examples 60 --tokenizer.vocab-size 60 --backend jit --teacher.training.steps 3 --evaluation.cached-k 0
--teacher.training.optimizer.warmup 1 --students.it.training.steps 3 --students.it.training.optimizer.warmup 1
"""


@pytest.fixture(scope="module")
def command(root, tmp_path_factory, lax_promotion):
    """Config, workdir and overrides of a run with a finished teacher and cache."""
    folder = tmp_path_factory.mktemp("stack")
    (folder / "config.py").write_text(CONFIG.format(smoke=str(root / "experiments/configs/smoke.py")))
    words = [str(folder / "config.py"), "--workdir", str(folder / "work"), *SHORT.split()]
    for phase in ("prepare", "teacher", "cache"):
        assert main([phase, *words]) == 0
    return words


@pytest.mark.parametrize(
    "chunk_bytes", [2**26, pytest.param(2**14, marks=pytest.mark.extended)], ids=["one chunk", "several"]
)
def test_few_calls_and_files_from_main_to_the_loss(command, root, monkeypatch, chunk_bytes):
    stacks, weighted_difference = [], divergence._weighted_difference

    def record(*arguments):
        stacks.append(traceback.extract_stack()[:-1])
        return weighted_difference(*arguments)

    monkeypatch.setattr(divergence, "_weighted_difference", record)  # which forward_kl calls
    monkeypatch.setattr("kd_jax.objective.fused_head.CHUNK_BYTES", chunk_bytes)
    assert main(["student", *command, "--force"]) == 0
    package = root / "kd_jax"
    trained = 0
    for stack in stacks:
        frames = [frame for frame in stack if package in Path(frame.filename).parents]
        names = [f"{Path(frame.filename).relative_to(package)}:{frame.name}" for frame in frames]
        assert names[0] == "cli/main.py:main" and names[-1] == "losses/divergence.py:forward_kl"
        if "training/loop.py:fit" in names:  # the check of the experiment calls the losses too
            trained += 1
            assert len(frames) <= CALLS, names
            assert len({frame.filename for frame in frames}) <= FILES, names
    assert trained


@pytest.mark.parametrize("function", [fit, train_model])
def test_few_arguments(function):
    assert len(inspect.signature(function).parameters) <= 6
