"""The controls that are added, and those that are there under another name."""

import dataclasses

import pytest

from kd_jax import Comparison, FromTeacher, PseudoTargets, Term, cross_entropy, load_experiment
from kd_jax.errors import KdError
from kd_jax.reporting.controls import with_controls

SMOKE = load_experiment("experiments/configs/smoke.py")
KD = SMOKE.students["student_kd"]


def changed(students, comparison=None):
    return with_controls(dataclasses.replace(SMOKE, students=students, comparison=comparison))


def test_both_are_the_distilled_student_but_for_the_teacher():
    taught = dataclasses.replace(KD, targets=PseudoTargets("best"))
    enlarged = changed({"kd": taught})
    assert list(enlarged.students) == ["kd", "control_ce", "control_smoothed"] and enlarged.students["kd"] == taught
    for name, smoothing in {"control_ce": {}, "control_smoothed": {"label_smoothing": 0.1}}.items():
        control = enlarged.students[name]
        assert (control.model, control.init, control.training) == (taught.model, FromTeacher(), taught.training)
        assert control.targets is None and control.terms == {"ce": Term(cross_entropy, options=smoothing)}
    assert enlarged.comparison == Comparison("control_ce", "kd", ("control_ce", "control_smoothed"))


def test_recipes_are_compared_not_names():
    smoothed = dataclasses.replace(KD, terms={"nll": Term(cross_entropy, options={"label_smoothing": 0.1})})
    compared = Comparison("student_scratch", "student_kd", controls=("student_scratch",))
    enlarged = changed({**SMOKE.students, "mine": smoothed}, compared)
    assert list(enlarged.students) == [*SMOKE.students, "mine"]
    assert enlarged.comparison.controls == ("student_scratch", "student_init", "mine")


def test_another_start_or_training_is_another_student():
    longer = dataclasses.replace(KD, terms={"ce": Term(cross_entropy)}, training=SMOKE.teacher.training)
    assert "control_ce" in changed({"longer": longer, "kd": KD}).students


def test_adding_is_done_once():
    enlarged = changed({"kd": KD})
    assert with_controls(enlarged) == enlarged


def test_what_cannot_be_is_one_line():
    with pytest.raises(KdError, match="students: none"):
        changed({})
    with pytest.raises(KdError, match="students: control_ce is not the control"):
        changed({"control_ce": SMOKE.students["student_scratch"], "kd": KD})
