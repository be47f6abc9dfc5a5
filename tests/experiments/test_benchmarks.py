"""Benchmarks use names that exist, so that a renamed function fails here and not in a long run."""

import ast
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from kd_jax import DecoderOnly, EncoderDecoder, load_experiment, resolve
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches.pipeline import Split

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY = {"d_model": 8, "heads": 2, "d_ff": 8, "dropout": 0.0}
FILES = sorted((EXPERIMENTS / "benchmarks").glob("*.py"))


@pytest.fixture
def import_file(monkeypatch):
    """Return a function that imports a file without running `main`; sys.path and sys.modules are restored."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # benchmarks prepend the repository

    def load(path: Path) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location(f"imported_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look up their annotations here
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_names_from_kd_jax_exist(path, import_file):
    """Check the imports, and the attributes of imported kd_jax modules."""
    module = import_file(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = getattr(module, node.value.id, None)
            if isinstance(owner, types.ModuleType) and owner.__name__.startswith("kd_jax"):
                assert hasattr(owner, node.attr), f"{path.name}:{node.lineno}: {owner.__name__} has no {node.attr}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_help_and_docstring_show_the_command(path, import_file, monkeypatch, capsys):
    module = import_file(path)
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        module.main()
    assert "--json" in capsys.readouterr().out
    assert f"python experiments/{path.parent.name}/{path.name}" in module.__doc__


def test_student_step_and_cache_batches(import_file, tmp_path, lax_promotion):
    """Run one block of small steps of both families from records on disk, and read the batches of `cache`."""
    step, cache = (import_file(EXPERIMENTS / "benchmarks" / f"{name}.py") for name in ("student_step", "cache"))
    for name, shape in step.shapes().items():
        if name != "large":
            model = dataclasses.replace(shape.student.model, **TINY)
            recipe = dataclasses.replace(shape.student, model=model)
            shape = dataclasses.replace(shape, vocab_size=64, examples=64, block=1, student=recipe)
            folder = Folder(tmp_path / name, "benchmark")
            step.write(folder, shape)
            step.make_block(folder, shape, "cached_topk")()
    split = Split(Folder(tmp_path / "quickstart", "benchmark"), "train")
    experiment = resolve(load_experiment(EXPERIMENTS / "configs/quickstart.py"))
    assert cache.train_batches(split, experiment, experiment.students["student_kd"])[0].mask_BT.any()


@pytest.mark.parametrize(
    "shape", [EncoderDecoder(1, 1, **TINY), DecoderOnly(1, **TINY)], ids=lambda shape: shape.family
)
def test_texts_of_random_weights_have_no_end_token(import_file, shape, tmp_path):
    """Generate them as `decode` does, from files and in another process."""
    decode = import_file(EXPERIMENTS / "benchmarks/decode.py")
    folder = tmp_path / "model"
    prompts = decode.random_model(folder, shape, length=3)
    (tmp_path / "texts").write_text("<5>\n\n<7>\n")
    assert decode.exported_model(tmp_path / "copy", folder, tmp_path / "texts") == [[5], [7]]
    job = decode.write_job(folder, shape.family, "random", prompts, threads=1)
    sides = decode.start_sides(job, folder, sys.executable, ["kd_jax"])
    greedy, beams = (sides["kd_jax"].ask(case)["texts"] for case in ("greedy_1", "beam4_8"))
    sides["kd_jax"].close()
    assert [len(ids) for ids in greedy + beams] == [3] * (16 + 32)
    assert decode.EOS not in np.unique([*greedy, *beams])


@pytest.fixture
def run_accelerator(tmp_path):
    """Return a function that runs the script on the CPU: (the finished process, what it wrote)."""

    def run(*options: str) -> tuple[subprocess.CompletedProcess, dict]:
        path = EXPERIMENTS / "benchmarks/accelerator.py"
        cache = {"JAX_COMPILATION_CACHE_DIR": os.environ["KD_JAX_CACHE"]}
        cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        finished = subprocess.run(
            [sys.executable, str(path), *options, "--json", str(tmp_path / "rows.json")],
            env=os.environ | cache | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        written = tmp_path / "rows.json"
        return finished, json.loads(written.read_text()) if written.exists() else {}

    return run


def test_accelerator_refuses_a_cpu_in_one_line(run_accelerator):
    finished, written = run_accelerator()
    assert finished.returncode == 1 and not written
    assert finished.stderr.startswith("error: expected a GPU or a TPU, got a CPU.")
    assert len(finished.stderr.splitlines()) == 1


def test_a_failing_case_is_a_row_and_the_exit_status(run_accelerator):
    """The random teacher of the tiny sizes has 512 tokens, so it has no top 1,000."""
    finished, written = run_accelerator("--tiny", "--parts", "fused_head", "--k", "1000")
    assert finished.returncode == 1, finished.stderr
    rows = written["parts"]["fused_head"]["rows"]
    failed = [row for row in rows if row["status"].startswith("failed")]
    assert {row["case"] for row in failed} == {"top-k", "top-k, chunks of 128"}
    assert all(len(row["status"]) <= len("failed: ") + 200 and "seconds" not in row for row in failed)
    ours = [row for row in rows if row["who"] == "kd_jax" and row not in failed]
    assert len(ours) == 4 and all(row["seconds"] > 0 for row in ours)
    assert all(row["status"] in finished.stdout for row in failed)
    assert "2 cases of kd_jax failed" in finished.stdout


@pytest.mark.extended
def test_cases_without_time_are_skipped(run_accelerator):
    finished, written = run_accelerator("--tiny", "--parts", "attention", "--seconds", "0")
    assert finished.returncode == 0, finished.stderr
    rows = written["parts"]["attention"]["rows"]
    assert len(rows) == 14 and {row["status"] for row in rows} == {"skipped: no time left"}
    assert "14 cases were skipped" in finished.stdout


@pytest.mark.extended
def test_every_part_of_the_accelerator_runs_on_a_cpu(run_accelerator):
    """With peaks of 1 TFLOP/s and 100 GB/s, so that shares are in (0, 1)."""
    finished, written = run_accelerator("--tiny", "--seconds", "300", "--tflops", "1", "--bandwidth", "100")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    parts = {name: part["rows"] for name, part in written["parts"].items()}
    assert list(parts) == ["correctness", "student_step", "fused_head", "decoding", "attention"]
    assert {row["status"] for rows in parts.values() for row in rows} <= {
        "ok",
        "passed",
        "not installed",
        "not on this platform",
    }
    passed = [row for row in parts["correctness"] if row["status"] == "passed"]
    assert len(passed) == 16 and all(row["value_error"] <= row["bound"] for row in passed)
    assert any(row["gradient_error"] for row in passed)  # blocks of the CPU round otherwise than plain attention
    ce, cached, online = parts["student_step"]
    assert ce["of_ce"] == 1 and ce["flops"] == cached["flops"] < online["flops"]
    for row in (ce, cached, online):
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(2 * 120)  # 128 less the padding
        assert 0 < row["peak_share"] < 1
    floor = next(row for row in parts["fused_head"] if row["who"] == "products alone")
    assert floor["flops"] == 6 * 512 * 32 * 512 and floor["of_floor"] == 1
    for row in parts["decoding"]:
        if row["who"] == "kd_jax":
            assert row["tokens_per_second"] * row["seconds"] == pytest.approx(8 * row["batch"])
            assert 0 < row["bandwidth_share"] < 1
    timed = {(row["length"], row["who"]) for row in parts["attention"] if row["status"] == "ok"}
    assert {(length, f"kd_jax, {kernel}") for length in (128, 256) for kernel in ("plain", "blocks")} <= timed


def test_accelerator_tells_kinds_of_errors_apart(import_file):
    accelerator = import_file(EXPERIMENTS / "benchmarks/accelerator.py")
    describe = accelerator.describe
    assert describe(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 GiB")) == "out of memory"
    kernel = describe(RuntimeError("RESOURCE_EXHAUSTED: Shared memory size limit exceeded"))
    assert kernel == "failed: RuntimeError: RESOURCE_EXHAUSTED: Shared memory size limit exceeded"
    assert describe(accelerator.NotHereError("not installed")) == "not installed"
    assert accelerator.difference([np.array([1.0, 2.0]), np.ones(1)], [np.array([1.0, 4.0]), np.ones(1)]) == 0.5
    assert accelerator.difference(np.array([np.nan]), np.array([1.0])) == np.inf
    failed = {"who": "kd_jax, triton", "status": "failed: x"}
    assert accelerator.is_failure(failed) and not accelerator.is_failure(failed | {"status": "out of memory"})
    assert not accelerator.is_failure(failed | {"who": "tokamax"})


@pytest.mark.parametrize(
    "errors, status",
    [
        ((0.1, 0.1), "passed"),
        ((0.0, None), "passed"),
        ((0.2, 0.0), "failed: the error is above its bound"),
        ((0.0, 0.2), "failed: the error is above its bound"),
        ((np.inf, 0.0), "failed: the error is above its bound"),
    ],
)
def test_a_check_fails_above_its_bound(import_file, errors, status):
    accelerator = import_file(EXPERIMENTS / "benchmarks/accelerator.py")
    setting = accelerator.Setting(accelerator.TINY, 4, None, None, deadline=np.inf, tiny=True)
    row = accelerator.check_row("a check", 0.1, setting, lambda: errors)
    assert row["status"] == status and accelerator.is_failure(row) == (status != "passed")


def test_rows_of_the_accelerator_are_full_of_texts(import_file):
    """A sixteenth of a row is padding; positions restart in every text, and targets are the next inputs."""
    accelerator = import_file(EXPERIMENTS / "benchmarks/accelerator.py")
    batch = accelerator.packed_batch(accelerator.TINY, 2, 128, 512)
    segment_BT, position_BT = batch.inputs.decoder.segment_BT, batch.inputs.decoder.position_BT
    np.testing.assert_array_equal(batch.mask_BT, segment_BT > 0)
    assert (batch.mask_BT.sum(1) == 120).all()
    starts = np.flatnonzero(np.diff(segment_BT[0], prepend=-1) * (segment_BT[0] > 0))
    assert len(starts) > 1 and (position_BT[0, starts] == 0).all()
    np.testing.assert_array_equal(batch.inputs.decoder.ids_BT[0, 1 : starts[1]], batch.targets_BT[0, : starts[1] - 1])
