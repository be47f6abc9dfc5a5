"""kd_jax.run: the command `run` from Python."""

import dataclasses
import json

import pytest

import kd_jax
from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.main import main
from kd_jax.phases.workdirs import read_experiment

SMOKE = "experiments/configs/smoke.py"


def test_run_skips_what_the_command_finished_and_returns_the_report(smoke_copy, root):
    experiment = kd_jax.load_experiment(root / SMOKE)
    manifest = (smoke_copy / "teacher/manifest.json").read_bytes()
    models = json.loads((smoke_copy / "report/report.json").read_text())["models"]
    report = kd_jax.run(experiment, smoke_copy)
    assert report == json.loads((smoke_copy / "report/report.json").read_text()) and report["models"] == models
    assert (smoke_copy / "teacher/manifest.json").read_bytes() == manifest


def test_run_refuses_another_experiment_a_locked_workdir_and_a_file(smoke_copy, root, tmp_path):
    experiment = kd_jax.load_experiment(root / SMOKE)
    with pytest.raises(kd_jax.KdError, match="seed"):
        kd_jax.run(dataclasses.replace(experiment, seed=1), smoke_copy)
    assert read_experiment(Workdir(smoke_copy)).seed == 0
    with Workdir(smoke_copy).lock(), pytest.raises(kd_jax.KdError, match="expected a folder that no other process uses"):
        kd_jax.run(experiment, smoke_copy)
    (tmp_path / "file").write_text("")
    with pytest.raises(kd_jax.KdError, match="expected a folder, got the file"):
        kd_jax.run(experiment, str(tmp_path / "file"))


def test_run_calls_all_phases_in_order(monkeypatch, root, tmp_path):
    phases = ["prepare", "teacher", "cache", "student", "evaluate", "report"]
    called = []
    for phase in phases:
        monkeypatch.setattr(f"kd_jax.phases.{phase}.run", lambda *_, phase=phase, **__: called.append(phase))
    assert main(["run", str(root / SMOKE), "--workdir", str(tmp_path / "a")]) == 0
    with pytest.raises(kd_jax.KdError, match="report"):  # which is not written here
        kd_jax.run(kd_jax.load_experiment(root / SMOKE), tmp_path / "b")
    assert called == 2 * phases
