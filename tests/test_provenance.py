"""The comparison of an experiment with manifests, as experiment.json gives it back."""

import dataclasses
import functools
import json

import pytest

from kd_jax import Term, config, jensen_shannon
from kd_jax.cli.overrides import apply_overrides
from kd_jax.experiment import as_resolved
from kd_jax.provenance import differs, input_fields


def read_back(experiment):
    return as_resolved(config.from_data(json.loads(json.dumps(config.to_data(experiment)))))


@pytest.mark.parametrize("name", ["smoke", "quickstart", "smoke_lm", "instructions", "narrow", "multiway"])
def test_experiment_json_has_the_fields_of_the_config(root, name):
    """Also the arguments of a partial function: what is read is compared with what was written."""
    experiment = apply_overrides(str(root / f"experiments/configs/{name}.py"), [])
    loss = functools.partial(jensen_shannon, beta=0.3)
    student, recipe = next(iter(experiment.students.items()))
    recipe = dataclasses.replace(recipe, terms={**recipe.terms, "own": Term(loss)})
    experiment = dataclasses.replace(experiment, students={**experiment.students, student: recipe})
    fields = input_fields(experiment)
    assert json.dumps(input_fields(read_back(experiment))) == json.dumps(fields)
    assert fields[f"students.{student}.terms.own.loss.beta"] == 0.3


BEFORE = {
    "students.a": "Recipe",
    "students.a.steps": 3,
    "students.a.terms.kd": "Term",
    "consumed.split": "x",
    "split": "y",
}
BEFORE |= {"students.a.terms.kd.loss": "functools.partial(f)", "code.own": "1"}


@pytest.mark.parametrize(
    "change, names",
    [
        ({}, set()),
        ({"students.a.steps": 4}, {"students.a.steps"}),
        ({"students.a.steps": None}, {"students.a.steps"}),  # None here: gone
        ({"students.a.terms.more": "Term", "students.a.terms.more.weight": 1}, {"students.a.terms.more"}),
        ({"students.a.terms.kd.loss.beta": 0.3}, {"students.a.terms.kd.loss.beta"}),
        # Another student, also one whose name begins with this one's; a field that did not decide the folder.
        ({"students.b": "Recipe", "students.b.terms.kd": "Term"}, set()),
        ({"students.a.b": "Recipe", "students.a.b.terms.kd": "Term"}, set()),
        ({"students.a.select": "last"}, set()),
        ({"code.own": "2"}, {"code.own"}),
        ({"code.own": None}, set()),
        ({"code.new": "1"}, set()),
        ({"evaluation.split": "test"}, set()),
    ],
)
def test_what_differs(change, names):
    now = {name: value for name, value in (BEFORE | change).items() if value is not None}
    now = {name: value for name, value in now.items() if name not in ("consumed.split", "split")}  # no fields
    assert {name for name in BEFORE.keys() | now.keys() if differs(name, BEFORE, now)} == names
