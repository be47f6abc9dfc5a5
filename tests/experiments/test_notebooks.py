"""Notebooks run from top to bottom in an empty folder, and what they say of it is true."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from kd_jax.models.huggingface.read import read_architecture

NOTEBOOKS = Path(__file__).parents[2] / "experiments/notebooks"
SECONDS = 180  # of the slowest cell, far more than any needs


@pytest.fixture
def executed(root, tmp_path, monkeypatch):
    """A notebook's name to what its code cells printed, one text a cell; it runs in tmp_path."""
    monkeypatch.setenv("PYTHONPATH", str(root))

    def printed(name: str) -> list[str]:
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}})
        client.execute()
        outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
        return ["".join(o.text for o in of_cell if o.get("name") == "stdout") for of_cell in outputs]

    return printed


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert 10 <= len(notebook.cells) <= 20
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_a_translator(executed, tmp_path):
    printed = executed("translator")
    run = tmp_path / "runs/translator"
    models = json.loads((run / "report/report.json").read_text())["models"]
    assert models["student_kd"]["kl_to_teacher"] < models["student_init"]["kl_to_teacher"]
    assert models["student_kd"]["bleu"] > models["student_scratch"]["bleu"] + 20
    first = json.loads((run / "evaluation/student_kd.jsonl").read_text().splitlines()[0])
    # By another process, from the folder alone.
    assert printed[-1].splitlines()[:2] == [first["source"], first["greedy"]]


def test_your_own_teacher(executed, tmp_path):
    *_, generated, from_the_export = executed("your_own_teacher")
    teacher, student = (read_architecture(tmp_path / path) for path in ("models/made_up", "exported/student_kd"))
    assert (teacher.layers, student.layers) == (4, 2)
    assert student.vocab_rows < teacher.vocab_rows
    assert generated.strip() and generated.strip() == from_the_export.strip()


def test_your_own_loop(executed):
    said = "".join(executed("your_own_loop"))
    aligned, fused = map(float, re.findall(r"largest difference (\S+)", said))
    assert aligned < 2e-3 and fused < 1e-5  # logits in 16 bits; rounding of sums
    courses = [list(map(float, course.split())) for course in re.findall(r": loss ([\d. ]+);", said)]
    assert len(courses) == 2
    for course in courses:
        assert course[-1] < course[0] / 4
    alone, distilled = map(float, re.findall(r"(\S+) nats from the teacher", said))
    assert distilled < alone
