"""Benchmarks find all that they use: a name that was changed breaks here, not in a run of an hour."""

import ast
import dataclasses
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from kd_jax import DecoderOnly, EncoderDecoder
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches.pipeline import Split
from kd_jax.config import load_experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY = {"d_model": 8, "heads": 2, "d_ff": 8, "dropout": 0.0}
FILES = sorted((EXPERIMENTS / "benchmarks").glob("*.py"))


@pytest.fixture
def imported(monkeypatch):
    """A file to its module, whose `main` is not run; the import leaves no trace."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # they put the repository first

    def module_of(path: Path) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location(f"imported_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look up their annotations
        spec.loader.exec_module(module)
        return module

    return module_of


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_names_are_there(path, imported):
    """Those that it imports, and those that its functions take from the modules it imports."""
    module = imported(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = getattr(module, node.value.id, None)
            if isinstance(owner, types.ModuleType) and owner.__name__.startswith("kd_jax"):
                assert node.attr in dir(owner), f"{path.name}:{node.lineno}: {owner.__name__} has no {node.attr}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_says_how_it_is_called(path, imported, monkeypatch, capsys):
    module = imported(path)
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        module.main()
    assert "--json" in capsys.readouterr().out
    assert f"python experiments/{path.parent.name}/{path.name}" in module.__doc__


def test_a_students_step_and_the_batches_of_the_cache_are_made(imported, tmp_path, lax_promotion):
    """One block of the smallest step, of either family, from records on disk; and batches as `cache` reads them."""
    step, cache = (imported(EXPERIMENTS / "benchmarks" / f"{name}.py") for name in ("student_step", "cache"))
    for name, shape in step.shapes().items():
        if name != "large":
            model = dataclasses.replace(shape.student.model, **TINY)
            recipe = dataclasses.replace(shape.student, model=model)
            shape = dataclasses.replace(shape, vocab_size=64, examples=64, block=1, student=recipe)
            folder = Folder(tmp_path / name, "benchmark")
            step.write(folder, shape)
            step.stepper(folder, shape, "cached_topk")()
    split = Split(Folder(tmp_path / "quickstart", "benchmark"), "train")
    experiment = load_experiment(EXPERIMENTS / "configs/quickstart.py")
    assert cache.train_batches(split, experiment, experiment.students["student_kd"])[0].mask_BT.any()


@pytest.mark.parametrize(
    "shape", [EncoderDecoder(1, 1, **TINY), DecoderOnly(1, **TINY)], ids=lambda shape: shape.family
)
def test_texts_of_random_weights_never_end(imported, shape, tmp_path):
    """As `decode` prepares and asks for them: through files, and a process of its own."""
    decode = imported(EXPERIMENTS / "benchmarks/decode.py")
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
