"""Notebooks run from top to bottom in an empty folder, and their claims hold."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from kd_jax.models.huggingface.read import read_architecture

NOTEBOOKS = Path(__file__).parents[2] / "experiments/notebooks"
CELL_TIMEOUT = 180  # seconds, far more than any cell needs


@pytest.fixture
def execute(root, tmp_path, monkeypatch):
    """Return a function that runs a notebook in tmp_path and returns the printed text of each code cell."""
    monkeypatch.setenv("PYTHONPATH", str(root))

    def run(name: str) -> list[str]:
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        client = NotebookClient(notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": str(tmp_path)}})
        client.execute()
        outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
        return ["".join(o.text for o in cell_outputs if o.get("name") == "stdout") for cell_outputs in outputs]

    return run


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_has_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert 10 <= len(notebook.cells) <= 20
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.extended
def test_translator(execute, tmp_path):
    printed = execute("translator")
    run = tmp_path / "runs/translator"
    models = json.loads((run / "report/report.json").read_text())["models"]
    assert models["student_kd"]["kl_to_teacher"] < models["student_init"]["kl_to_teacher"]
    assert models["student_kd"]["bleu"] > models["student_scratch"]["bleu"] + 20
    first = json.loads((run / "evaluation/student_kd.jsonl").read_text().splitlines()[0])
    assert printed[-1].splitlines()[:2] == [first["source"], first["greedy"]]


@pytest.mark.extended
def test_your_own_teacher(execute, tmp_path):
    *_, from_run, from_export = execute("your_own_teacher")
    teacher, student = (read_architecture(tmp_path / path) for path in ("models/made_up", "exported/student_kd"))
    assert (teacher.layers, student.layers) == (4, 2)
    assert student.vocab_rows < teacher.vocab_rows
    assert from_run.strip() and from_run.strip() == from_export.strip()


@pytest.mark.extended
def test_your_own_loop(execute):
    printed = "".join(execute("your_own_loop"))
    aligned, fused = map(float, re.findall(r"largest difference (\S+)", printed))
    assert aligned < 2e-3 and fused < 1e-5  # logits in 16 bits; rounding of sums
    loss_curves = [list(map(float, curve.split())) for curve in re.findall(r": loss ([\d. ]+);", printed)]
    assert len(loss_curves) == 2
    for curve in loss_curves:
        assert curve[-1] < curve[0] / 4
    cross_entropy_alone, distilled = map(float, re.findall(r"(\S+) nats from the teacher", printed))
    assert distilled < cross_entropy_alone
