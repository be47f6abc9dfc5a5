"""A whole run that is killed again and again, in every phase, is the run that was never stopped."""

import json
import os
import random
import re
import resource
import signal
import time

import chex
import jax
import numpy as np
import pytest

from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.overrides import apply_overrides
from kd_jax.training.model import load_trained
from tests.faults.pipeline import start

STUDENTS = ("student_scratch", "student_init", "student_kd")
SHORT = ["--backend jit --evaluation.bootstrap 10 --evaluation.speed-texts 1"]
for recipe, steps, each in (("teacher", 24, 6), *((f"students.{name}", 12, 4) for name in STUDENTS)):
    field = f"--{recipe}.training"
    SHORT += [f"{field}.steps {steps} {field}.eval-every {each} {field}.optimizer.warmup 2"]
# Folder -> how often a run is stopped while it is made.
KILLS = {"data": 2, "teacher": 3, "cache/topk": 2, "students/student_scratch": 2, "students/student_init": 2}
KILLS |= {"students/student_kd": 2, "evaluation": 3, "report": 1}
WARNINGS = {"teacher": 2, "cache/topk": 1, "students/student_kd": 2, "evaluation": 1}
VARY = ("seconds", "per_second", "bytes", "speed")  # from run to run; orbax compresses as it comes
PATIENCE = 600  # seconds, on a busy machine


@pytest.fixture(scope="module", params=["smoke", "smoke_lm"])
def command(request, root):
    return [str(root / f"experiments/configs/{request.param}.py"), *" ".join(SHORT).split()]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The workdir of a run that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "work"
    assert finish(command, path) == 0
    return path


def finish(command, path):
    process = start(["run", *command, "--workdir", str(path)], path.with_suffix(".log"))
    process.join(PATIENCE)
    return process.exitcode


def stopped(command, whole, path, times, number):
    """How often a run was stopped by signal `number`: at moments by chance, while each folder is made."""
    chance, stops = random.Random(f"{command[0]} {number}"), 0
    for folder, often in times.items():
        seconds = json.loads((whole / folder / "manifest.json").read_text())["seconds"]  # most of them to compile
        for _ in range(often):
            process = start(["run", *command, "--workdir", str(path)], path.with_suffix(".log"))
            wait_for(path, folder, process)
            process.join(chance.uniform(0, 0.25 * seconds))
            if process.exitcode is None:
                os.kill(process.pid, number)
                process.join(PATIENCE)
                stops += 1
                assert process.exitcode == (-number if number == signal.SIGKILL else 0)
    return stops


def test_killed_at_15_moments(command, whole, tmp_path):
    kills = stopped(command, whole, tmp_path / "work", KILLS, signal.SIGKILL)
    print(f"{kills} kills")
    assert kills >= 15  # of 17: of what is compiled already, the last may come too late
    assert finish(command, tmp_path / "work") == 0
    assert_same(tmp_path / "work", whole, command)


def test_asked_to_stop_it_says_how_to_go_on(command, whole, tmp_path):
    stops = stopped(command, whole, tmp_path / "work", WARNINGS, signal.SIGTERM)
    said = (tmp_path / "work.log").read_text()
    assert stops >= 5 and said.count("stopped by SIGTERM; the same command goes on from here") == stops
    assert finish(command, tmp_path / "work") == 0
    assert_same(tmp_path / "work", whole, command)


def wait_for(path, folder, process):
    """Until the process holds the workdir, from when on it hears that it is asked to stop, and the folder is begun."""
    lock, inputs, began = path / ".kd_jax.lock", path / folder / "inputs.json", time.monotonic()
    while not (inputs.exists() and lock.read_text() == f"{process.pid}\n") and process.is_alive():
        assert time.monotonic() < began + PATIENCE, folder
        time.sleep(0.002)


def assert_same(path, whole, command):
    """Parameters, caches and predictions to the bit; figures too, but those of time."""
    for record in whole.glob("**/*.arrayrecord"):
        assert (path / record.relative_to(whole)).read_bytes() == record.read_bytes(), record
    experiment = apply_overrides(command[0], command[1:])
    for name in ("teacher", *STUDENTS):
        params = [jax.device_get(load_trained(experiment, Workdir(run), name)[1]) for run in (path, whole)]
        chex.assert_trees_all_equal(*params)
        assert (path / f"evaluation/{name}.jsonl").read_bytes() == (whole / f"evaluation/{name}.jsonl").read_bytes()
        figures = [json.loads((run / f"evaluation/{name}.json").read_text()) for run in (path, whole)]
        steady = [{key: x for key, x in one.items() if not any(word in key for word in VARY)} for one in figures]
        assert steady[0] == steady[1]
    for arrays in whole.glob("evaluation/*.npz"):
        with np.load(arrays) as wanted, np.load(path / "evaluation" / arrays.name) as seen:
            chex.assert_trees_all_equal(dict(seen), dict(wanted))


def test_a_disk_that_fills_is_one_line_and_all_that_was_there_is_whole(command, whole, tmp_path):
    """Files may not grow beyond so many kibibytes: the tokeniser's, then a checkpoint's, then the cache's do."""
    path = tmp_path / "work"
    for phase, kibibytes in (("run", 96), ("prepare", 0), ("run", 100), ("teacher", 0), ("run", 300)):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        process = start([phase, *command, "--workdir", str(path)], log, 1024 * kibibytes or resource.RLIM_INFINITY)
        process.join(PATIENCE)
        said = log.read_text()
        if kibibytes:
            assert process.exitcode == 2 and not re.search('File ".*/kd_jax/', said), said
            assert "error: File too large (" in said.splitlines()[-1]
        else:
            assert process.exitcode == 0
    assert finish(command, path) == 0
    assert_same(path, whole, command)
