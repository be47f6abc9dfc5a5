"""Controls of the distilled student: added unless a student equals them under another name."""

import dataclasses

import pytest

from kd_jax import Comparison, FromTeacher, PseudoTargets, Term, cross_entropy, load_experiment
from kd_jax.errors import KdError
from kd_jax.reporting.controls import with_controls

SMOKE = load_experiment("experiments/configs/smoke.py")
KD = SMOKE.students["student_kd"]


def add_controls(students, comparison=None):
    return with_controls(dataclasses.replace(SMOKE, students=students, comparison=comparison))


def test_controls_are_the_distilled_student_without_the_teacher():
    distilled = dataclasses.replace(KD, targets=PseudoTargets("best"))
    enlarged = add_controls({"kd": distilled})
    assert list(enlarged.students) == ["kd", "control_ce", "control_smoothed"] and enlarged.students["kd"] == distilled
    for name, smoothing in {"control_ce": {}, "control_smoothed": {"label_smoothing": 0.1}}.items():
        control = enlarged.students[name]
        assert (control.model, control.init, control.training) == (distilled.model, FromTeacher(), distilled.training)
        assert control.targets is None and control.terms == {"ce": Term(cross_entropy, options=smoothing)}
    assert enlarged.comparison == Comparison("control_ce", "kd", ("control_ce", "control_smoothed"))


def test_controls_are_found_under_other_names():
    smoothed = dataclasses.replace(KD, terms={"nll": Term(cross_entropy, options={"label_smoothing": 0.1})})
    comparison = Comparison("student_scratch", "student_kd", controls=("student_scratch",))
    enlarged = add_controls({**SMOKE.students, "mine": smoothed}, comparison)
    assert list(enlarged.students) == [*SMOKE.students, "mine"]
    assert enlarged.comparison.controls == ("student_scratch", "student_init", "mine")


def test_student_with_other_training_is_no_control():
    longer = dataclasses.replace(KD, terms={"ce": Term(cross_entropy)}, training=SMOKE.teacher.training)
    assert "control_ce" in add_controls({"longer": longer, "kd": KD}).students


def test_with_controls_is_idempotent():
    enlarged = add_controls({"kd": KD})
    assert with_controls(enlarged) == enlarged


def test_invalid_students_are_refused():
    with pytest.raises(KdError, match="students: expected at least the distilled student, got none"):
        add_controls({})
    with pytest.raises(KdError, match="students: expected control_ce to be the control"):
        add_controls({"control_ce": SMOKE.students["student_scratch"], "kd": KD})
