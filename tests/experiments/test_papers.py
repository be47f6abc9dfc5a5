"""Configs of papers: each is valid, its docstring is a lab page, and each student has a control of its network."""

import ast
import json
import re
from pathlib import Path

import jax
import pytest

from kd_jax import config, load_experiment, resolve
from kd_jax.objective.entropy import selective_terms
from kd_jax.phases.check import check
from kd_jax.reporting.controls import with_controls

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "experiments/papers").glob("*.py"))
LABELS = ("Paper:", "Question:", "The paper reports", "What differs here:", "Figures:")
each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def load(path):
    """Return the experiment as `ablate` runs it."""
    return with_controls(resolve(load_experiment(path)))


@each_config
def test_config_is_valid_and_round_trips(path):
    experiment = load(path)
    assert experiment.name == path.stem
    check(experiment)
    again = config.from_data(json.loads(json.dumps(config.to_data(experiment))))
    assert config.to_text(again) == config.to_text(experiment)


@each_config
def test_docstring_is_a_lab_page(path):
    page = ast.get_docstring(ast.parse(path.read_text()))
    positions = [page.index(label) for label in LABELS]
    assert positions == sorted(positions)
    assert re.search(r"arXiv \d{4}\.\d{5}", page)
    command = f"python -m kd_jax ablate experiments/papers/{path.name} --workdir runs/{path.stem} --seeds 0 1 2"
    assert command in page


@each_config
def test_each_student_is_compared_with_a_control_of_its_network_and_training(path):
    experiment = load(path)
    students, controls = experiment.students, experiment.comparison.controls
    for name, recipe in students.items():
        equal = [
            control
            for control in controls
            if control != name
            and (students[control].model, students[control].training) == (recipe.model, recipe.training)
        ]
        assert equal or name in controls, name
    assert experiment.comparison.baseline in students


def test_page_lists_every_config():
    page = (ROOT / "docs/papers.md").read_text()
    rows = [line for line in page.splitlines() if "arxiv.org/abs/" in line]
    assert len(rows) == len(CONFIGS)
    for path in CONFIGS:
        (number,) = re.findall(r"^Paper: .*?arXiv (\d{4}\.\d{5})", path.read_text(), re.MULTILINE | re.DOTALL)
        (row,) = [row for row in rows if f"| `{path.stem}` |" in row]
        assert f"arxiv.org/abs/{number}" in row


def parameters(model, vocab_size=4000):
    shapes = jax.eval_shape(model.build(vocab_size).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_minitron_s_width_and_depth_have_equal_parameters():
    students = load(ROOT / "experiments/papers/minitron.py").students
    width, depth = (parameters(students[name].model) for name in ("important_kd", "depth_kd"))
    assert abs(width - depth) / depth < 0.001


def test_shares_of_the_entropy_selection():
    students = load(ROOT / "experiments/papers/entropy_selection.py").students
    shares = {name: selective_terms(recipe.terms).get("kd", 1.0) for name, recipe in students.items()}
    assert {name: share for name, share in shares.items() if share < 1} == {"half": 0.5, "fifth": 0.2, "tenth": 0.1}
