"""A run that is killed at a commit point of every phase, and resumed, equals the run that was never stopped."""

import json
import os
import re
import resource
import shutil
import signal

import chex
import jax
import numpy as np
import pytest

from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.overrides import apply_overrides
from kd_jax.phases import cache, prepare, report
from kd_jax.training.model import load_trained
from tests.faults.pipeline import Stop, start

STUDENTS = ("student_scratch", "student_init", "student_kd")
SHORT = ["--backend jit --evaluation.bootstrap 10 --evaluation.speed-texts 1"]
for recipe, steps, each in (("teacher", 24, 6), *((f"students.{name}", 12, 4) for name in STUDENTS)):
    field = f"--{recipe}.training"
    SHORT += [f"{field}.steps {steps} {field}.eval-every {each} {field}.optimizer.warmup 2"]
# In the order of the phases: every run gets as far as the next one.
KILLS = [
    Stop("/data/train.index.json"),
    Stop("/data/manifest.json", committed=True),
    Stop("/teacher/checkpoints/12"),
    Stop("/teacher/checkpoints/18", committed=True),
    Stop("/teacher/manifest.json"),
    Stop("/cache/topk/records.index.json"),
    Stop("/students/student_init/checkpoints/8", committed=True),
    Stop("/students/student_kd/checkpoints/8"),
    Stop("/evaluation/student_init.json"),
    Stop("/evaluation/manifest.json"),
    Stop("/report/report.json", committed=True),
]
SIGTERMS = [
    Stop("/data/train.index.json", signal.SIGTERM),
    Stop("/teacher/checkpoints/6", signal.SIGTERM, committed=True),
    Stop("/students/student_kd/checkpoints/4", signal.SIGTERM, committed=True),
    Stop("/evaluation/inputs.json", signal.SIGTERM, committed=True),
]
VARY = ("seconds", "per_second", "bytes", "speed")  # from run to run; orbax compresses chunks as they come
PATIENCE = 600  # seconds, on a busy machine


@pytest.fixture(scope="module", params=["smoke", pytest.param("smoke_lm", marks=pytest.mark.extended)])
def command(request, root):
    return [str(root / f"experiments/configs/{request.param}.py"), *" ".join(SHORT).split()]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    """The workdir of a run that was never stopped."""
    path = tmp_path_factory.mktemp("uninterrupted") / "work"
    assert run_until(command, path) == 0
    return path


def run_until(command, path, stop=None):
    """Return the exit code of a run, which may stop itself at a commit."""
    process = start(["run", *command, "--workdir", str(path)], path.with_suffix(".log"), stop=stop)
    process.join(PATIENCE)
    return process.exitcode


def test_killed_at_a_commit_of_every_phase(command, uninterrupted, tmp_path):
    for stop in KILLS:
        assert run_until(command, tmp_path / "work", stop) == -signal.SIGKILL, stop
    assert run_until(command, tmp_path / "work") == 0
    assert_same_run(tmp_path / "work", uninterrupted, command)


@pytest.mark.extended
def test_sigterm_leaves_a_run_to_resume(command, uninterrupted, tmp_path):
    for count, stop in enumerate(SIGTERMS, start=1):
        assert run_until(command, tmp_path / "work", stop) == 0, stop
        assert not (tmp_path / "work/report/manifest.json").exists()
        assert (tmp_path / "work.log").read_text().count("stopped by SIGTERM") == count
    assert run_until(command, tmp_path / "work") == 0
    assert_same_run(tmp_path / "work", uninterrupted, command)


class Killed(BaseException):
    """Raised at a commit in place of a signal."""


@pytest.mark.parametrize(
    "phase, folder", [(prepare, "data"), (cache, "cache"), (report, "report")], ids=["prepare", "cache", "report"]
)
def test_killed_at_each_commit(phase, folder, uninterrupted, command, tmp_path, monkeypatch):
    """In process: attempt n dies at its n-th commit, and the next one resumes."""
    if "smoke_lm" in command[0]:
        pytest.skip("the same code as for smoke")
    experiment, path = apply_overrides(command[0], command[1:]), tmp_path / "work"
    shutil.copytree(uninterrupted, path)
    shutil.rmtree(path / folder)
    replace, left = os.replace, 0

    def dying(source, target):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    attempts, finished = 0, False
    while not finished and attempts < 100:
        left, attempts = attempts, attempts + 1
        try:
            phase.run(experiment=experiment, workdir=Workdir(path))
            finished = True
        except Killed:
            pass
    assert finished and attempts > 1
    names = [
        {str(file.relative_to(run)) for file in (run / folder).rglob("*") if not file.name.endswith(".part")}
        for run in (path, uninterrupted)
    ]
    assert names[0] == names[1]
    for name in names[1]:
        if name.endswith((".arrayrecord", ".npy", ".model", ".jsonl")):
            assert (path / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def assert_same_run(path, uninterrupted, command):
    """Parameters, caches and predictions are equal to the bit, and all figures but those of time."""
    for record in uninterrupted.glob("**/*.arrayrecord"):
        assert (path / record.relative_to(uninterrupted)).read_bytes() == record.read_bytes(), record
    experiment = apply_overrides(command[0], command[1:])
    for name in ("teacher", *STUDENTS):
        params = [jax.device_get(load_trained(experiment, Workdir(run), name)[1]) for run in (path, uninterrupted)]
        chex.assert_trees_all_equal(*params)
        texts = [(run / f"evaluation/{name}.jsonl").read_bytes() for run in (path, uninterrupted)]
        assert texts[0] == texts[1]
        figures = [json.loads((run / f"evaluation/{name}.json").read_text()) for run in (path, uninterrupted)]
        steady = [{key: x for key, x in one.items() if not any(word in key for word in VARY)} for one in figures]
        assert steady[0] == steady[1]
    for arrays in uninterrupted.glob("evaluation/*.npz"):
        with np.load(arrays) as expected, np.load(path / "evaluation" / arrays.name) as actual:
            chex.assert_trees_all_equal(dict(actual), dict(expected))


@pytest.mark.extended
def test_full_disk_is_one_line_and_loses_nothing(command, uninterrupted, tmp_path):
    """Files may not grow beyond so many kibibytes: the tokeniser's, then a checkpoint's, then the cache's do."""
    path = tmp_path / "work"
    for phase, kibibytes in (("run", 96), ("prepare", 0), ("run", 100), ("teacher", 0), ("run", 300)):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        process = start([phase, *command, "--workdir", str(path)], log, 1024 * kibibytes or resource.RLIM_INFINITY)
        process.join(PATIENCE)
        output = log.read_text()
        if kibibytes:
            assert process.exitcode == 2 and not re.search('File ".*/kd_jax/', output), output
            assert "error: File too large (" in output.splitlines()[-1]
        else:
            assert process.exitcode == 0
    assert run_until(command, path) == 0
    assert_same_run(path, uninterrupted, command)
