"""The drill: its cases are named once, it judges outcomes rightly, and a small one has no failure."""

import collections
import json
import os
import subprocess
import sys

import pytest

DRILL = "experiments/drills/drill.py"


@pytest.fixture
def modules(root, monkeypatch):
    """Return the drill's modules."""
    monkeypatch.setattr(sys, "path", [str(root / "experiments/drills"), *sys.path])
    import drill
    import harness

    return collections.namedtuple("Modules", "drill harness")(drill, harness)


def test_cases_have_different_names(modules, smoke_run):
    for kind, cases in modules.drill.KINDS.items():
        names = [case.name for case in cases(smoke_run)]
        assert len(names) == len(set(names)) > 100, kind


LINE = "error: field: expected X, got Y.\n"


@pytest.mark.parametrize(
    "code, out, err, refused, outcome",
    [
        (2, "", LINE, True, "refused"),
        (2, "", f"teacher: 5/10\n{LINE}", True, "refused"),
        (2, "", f"{LINE}{LINE}", True, "traceback"),
        (2, "", "usage: ...\n", True, "traceback"),
        (1, "", "Traceback (most recent call last):\nKeyError: 1\n", True, "traceback"),
        (1, "", "error: x, line 1: ... This is a bug of kd_jax; ...\n", True, "traceback"),
        (-11, "", "", True, "traceback"),
        (-9, "", "", True, "hang"),
        (0, "text\n", "", True, "silent"),
        (0, "text\n", "", False, "unaffected"),
        (0, "other\n", "", False, "silent"),
        (2, "", "error: \x1b[2J: expected X.\n", True, "silent"),
    ],
)
def test_outcomes_are_judged(modules, code, out, err, refused, outcome, tmp_path):
    case = modules.harness.Case("x", ("generate",), refused=refused)
    drill = object.__new__(modules.harness.Drill)
    drill._intact = {case.words: "text\n"}
    assert drill._judge(case, tmp_path, code, 0, out, err) == outcome
    assert drill._judge(case, tmp_path, 2, 2**40, out, err) == "memory"


@pytest.mark.extended
def test_a_small_drill_has_no_failure(root, tmp_path):
    command = [sys.executable, DRILL, "--workdir", str(tmp_path), "--tiny"]
    result = subprocess.run(
        command, cwd=root, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert result.returncode == 0, result.stdout
    assert {one["outcome"] for one in results} <= {"refused", "unaffected"} and len(results) == 24
