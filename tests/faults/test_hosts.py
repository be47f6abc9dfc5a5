"""Several hosts on one run, real processes on loopback: the result is that of one, and none waits for the dead."""

import json
import os
import signal
import socket
import time

import chex
import jax
import numpy as np
import pytest

from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches.store import Store
from kd_jax.cli.overrides import apply_overrides
from kd_jax.training.model import load_trained
from tests.faults.pipeline import start

STUDENTS = ("student_scratch", "student_init", "student_kd")
SHORT = "--evaluation.bootstrap 10 --evaluation.speed-texts 1 --evaluation.draft 0"
for recipe, steps, each in (("teacher", 24, 12), *((f"students.{name}", 8, 4) for name in STUDENTS)):
    field = f"--{recipe}.training"
    SHORT += f" {field}.steps {steps} {field}.eval-every {each} {field}.optimizer.warmup 2"
PATIENCE = 600  # seconds, on a busy machine
LOST = 120  # seconds in which the others notice that a host is gone


def command(root, name, backend="--backend mesh"):
    return [str(root / f"experiments/configs/{name}.py"), *SHORT.split(), *backend.split()]


def together(arguments, path, hosts, devices=1, options=()):
    """One process a host, begun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    path.parent.mkdir(exist_ok=True)
    return [
        start(
            [*arguments, "--workdir", str(path), "--host", f"{i}/{hosts}", "--coordinator", where, *options],
            log(path, i),
            devices=devices,
        )
        for i in range(hosts)
    ]


def log(path, host):
    return path.with_name(f"{path.name}.{host}.log")


def codes(processes, patience=PATIENCE):
    until = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    return [process.exitcode for process in processes]


def wait_for(file):
    until = time.monotonic() + PATIENCE
    while not file.exists():
        assert time.monotonic() < until, file
        time.sleep(0.05)


def assert_close(path, wanted, config):
    """What two runs left, but for the order in which floats were added up."""
    experiment = apply_overrides(config[0], config[1:])
    for name in ("teacher", *STUDENTS):
        params = [jax.device_get(load_trained(experiment, Workdir(run), name)[1]) for run in (path, wanted)]
        chex.assert_trees_all_close(*params, atol=2e-4)
        figures = [json.loads((run / f"evaluation/{name}.json").read_text()) for run in (path, wanted)]
        for figure in ("cross_entropy", "kl_to_teacher", "examples", "parameters"):
            assert figures[0][figure] == pytest.approx(figures[1][figure], abs=2e-3)
        rows = [(run / f"evaluation/{name}.jsonl").read_text().count("\n") for run in (path, wanted)]
        assert rows[0] == rows[1] > 0
    caches = [Store(run / "cache/topk", "records") for run in (path, wanted)]
    assert len(caches[0]) == len(caches[1]) > 0
    for i in range(len(caches[1])):
        records = [cache[i] for cache in caches]
        np.testing.assert_array_equal(records[0]["digest"], records[1]["digest"])
        likeliest = [record["logits"][:, 0].astype(float) for record in records]
        np.testing.assert_allclose(*likeliest, atol=2e-2)  # float16
    assert json.loads((path / "report/report.json").read_text())["models"].keys() == {"teacher", *STUDENTS}


@pytest.mark.parametrize(
    "name, hosts, devices, mesh",
    [("smoke", 2, 2, "--mesh.fsdp 2"), ("smoke", 4, 1, ""), ("smoke_lm", 2, 1, "")],
)
def test_the_result_is_that_of_one(root, tmp_path, name, hosts, devices, mesh):
    one, path = tmp_path / "one", tmp_path / "several"
    config = command(root, name)
    alone = start(["run", *config, "--workdir", str(one)], log(one, 0))
    assert codes([alone]) == [0], log(one, 0).read_text()
    several = together(["run", *config, *mesh.split()], path, hosts, devices)
    assert codes(several) == [0] * hosts, log(path, 0).read_text()
    assert_close(path, one, config)
    assert f"report: {path}/report/report.html" in log(path, 0).read_text()
    assert not [line for line in log(path, 1).read_text().splitlines() if line.startswith(("teacher", "cache", "data"))]


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory):
    """A config whose teacher is trained for long, and a workdir with its data."""
    path = tmp_path_factory.mktemp("prepared") / "work"
    config = [*command(root, "smoke"), "--teacher.training.steps", "4000", "--teacher.training.eval-every", "20"]
    assert codes([start(["prepare", *config, "--workdir", str(path)], log(path, 0))]) == [0]
    return config, path


def checkpoint(path):
    return path / "teacher/checkpoints/20"


def test_one_is_asked_to_stop_and_all_do(prepared):
    config, path = prepared
    both = together(["teacher", *config], path, 2)
    wait_for(checkpoint(path))
    os.kill(both[1].pid, signal.SIGTERM)
    assert codes(both, LOST) == [0, 0], log(path, 0).read_text()
    assert "stopped by SIGTERM" in log(path, 0).read_text()


def test_one_dies_and_none_waits_and_fewer_go_on(prepared):
    """Of another number of hosts, from the last checkpoint: with the same batches."""
    config, path = prepared
    both = together(["teacher", *config], path, 2)
    wait_for(checkpoint(path))
    time.sleep(2)
    os.kill(both[1].pid, signal.SIGKILL)
    assert codes(both, LOST)[0] not in (None, 0)
    alone = start(["teacher", *config, "--workdir", str(path)], log(path, 9))
    until = time.monotonic() + PATIENCE
    while "resuming from step" not in (log(path, 9).read_text() if log(path, 9).exists() else ""):
        assert alone.is_alive() and time.monotonic() < until
        time.sleep(0.1)
    os.kill(alone.pid, signal.SIGTERM)
    assert codes([alone]) == [0]


def test_one_hangs_and_none_waits(prepared):
    config, path = prepared
    both = together(["teacher", *config], path, 2, options=("--patience", "15"))
    wait_for(checkpoint(path))
    time.sleep(2)
    os.kill(both[1].pid, signal.SIGSTOP)
    ended = codes(both[:1], LOST)
    os.kill(both[1].pid, signal.SIGKILL)
    assert ended[0] not in (None, 0)  # 3, or what a collective that gave up made of it
    assert "no progress for" in log(path, 0).read_text()


def test_an_error_of_the_first_is_all_hosts(root, tmp_path):
    """Which wait for it, rather than for something that does not come."""
    config = [*command(root, "smoke"), "--source.examples", "1"]
    both = together(["prepare", *config], tmp_path / "work", 2)
    assert codes(both, LOST) == [2, 2]
    said = [log(tmp_path / "work", i).read_text().splitlines()[-1] for i in range(2)]
    assert said[0] == said[1] and said[0].startswith("error: ")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--host", "2/2"], "--host 2/2: wanted NUMBER/HOSTS"),
        (["--host", "0/2"], "--coordinator: missing"),
        (["--host", "auto"], "--host: expected all hosts to connect"),
        (["--coordinator", "127.0.0.1:1"], "--coordinator: goes with --host"),
    ],
)
def test_where_they_meet_must_be_said(root, tmp_path, options, message):
    path = tmp_path / "work"
    assert codes([start(["run", *command(root, "smoke"), "--workdir", str(path), *options], log(path, 0))]) == [2]
    assert message in log(path, 0).read_text()
