"""Benchmarks use names that exist, so that a renamed function fails here and not in a long run."""

import ast
import dataclasses
import importlib.util
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
