"""The table of what students keep of their teacher, and the students that are made so."""

import dataclasses
import json

import pytest

from kd_jax.artifacts.digests import params_digest
from kd_jax.errors import KdError
from kd_jax.phases import shrink, student
from kd_jax.phases.shrink import choices
from kd_jax.students.init import FromTeacher, Random
from kd_jax.training.model import initial_params
from tests.helpers.runs import run_until_cache, smoke

SHORT = """
--evaluation.cached-k 0 --buckets 36
--teacher.training.steps 12 --teacher.training.eval-every 12 --teacher.training.optimizer.warmup 2
--students.student_kd.training.steps 2 --students.student_kd.training.eval-every 2
--students.student_kd.training.optimizer.warmup 1
"""


@pytest.fixture(scope="module")
def base(root, lax_promotion):
    return smoke(root, SHORT.split())


@pytest.fixture(scope="module")
def workdir(base, tmp_path_factory):
    return run_until_cache(base, tmp_path_factory.mktemp("run"))


def with_students(base, **students):
    """The experiment with these (fields of the teacher's model, init)."""
    recipe = base.students["student_kd"]
    made = {
        name: dataclasses.replace(recipe, model=dataclasses.replace(base.teacher.model, **fields), init=init)
        for name, (fields, init) in students.items()
    }
    return dataclasses.replace(base, students=made, comparison=None)


NARROW = {"d_model": 20, "head_dim": 16, "d_ff": 40}


def rows_of(experiment, workdir):
    shrink.run(experiment, workdir)
    return json.loads((workdir.shrink.path / "shrink.json").read_text())


def test_the_whole_teacher_is_the_teacher_and_a_part_is_not(base, workdir, capsys):
    students = {"whole": ({}, FromTeacher()), "narrow": (NARROW, FromTeacher(sample=30))}
    students |= {"chance": ({}, Random()), "same": (NARROW, FromTeacher(sample=30))}
    teacher, whole, *narrow = rows_of(with_students(base, **students), workdir)
    assert whole["kl_to_teacher"] == pytest.approx(0, abs=1e-5) and whole["parameters"] == teacher["parameters"]
    assert whole["cross_entropy"] == pytest.approx(teacher["cross_entropy"]) and whole["layers"] == "all"
    assert [(row["width"], row["configured"]) for row in narrow] == [
        ("importance", True),
        ("first", False),
        ("random", False),
    ]
    for row in narrow:
        assert row["students"] == ["narrow", "same"] and row["kl_to_teacher"] > 0.001
        assert row["parameters"] < whole["parameters"]
    said = capsys.readouterr().out
    assert "narrow *" in said and "narrow stands for same too" in said and "chance" not in said.split("Before")[0]


def test_the_same_bits_again_and_the_manifest_says_what_they_are_of(base, workdir):
    experiment = with_students(base, narrow=(NARROW, FromTeacher(sample=30)))
    assert rows_of(experiment, workdir) == rows_of(experiment, workdir)
    inputs = workdir.shrink.inputs()
    assert inputs["students.narrow.init.sample"] == 30 and inputs["students.narrow.model.d_model"] == 20
    student.run(experiment, workdir)
    again = params_digest(initial_params(experiment, workdir, experiment.students["narrow"]))
    assert workdir.model("narrow").outputs()["first_parameters"] == again
    assert workdir.model("narrow").inputs()["students.narrow.init.width"] == "importance"


def titles(experiment):
    return [(one.layers, one.init.encoder, one.init.decoder, one.configured) for one in choices(experiment)]


def test_layers_that_are_the_same_are_measured_once(base):
    assert titles(with_students(base, it=({"decoder_layers": 1}, FromTeacher()))) == [
        ("spaced, first", (0, 1), (0,), True),
        ("last", (0, 1), (1,), False),
    ]
    assert titles(with_students(base, it=({"decoder_layers": 1}, FromTeacher(decoder=(1,))))) == [
        ("listed, last", (0, 1), (1,), True),
        ("spaced, first", (0, 1), (0,), False),
    ]
    deeper = {"decoder_layers": 3}
    assert titles(with_students(base, it=(deeper, FromTeacher(decoder=(0, 1, 1))))) == [
        ("listed", (0, 1), (0, 1, 1), True)
    ]


def test_a_student_that_another_is_compared_with_is_measured_once(base):
    """The first of everything is a control of both: one of them stands for it."""
    students = {width: (NARROW, FromTeacher(width=width)) for width in ("importance", "random")}
    ways = [(*one.students, one.init.width, one.configured) for one in choices(with_students(base, **students))]
    assert ways == [
        ("importance", "importance", True),
        ("importance", "first", False),
        ("random", "random", True),
    ]


def test_what_it_cannot_compare_is_refused(base, workdir, tmp_path):
    with pytest.raises(KdError, match="students: none has init=FromTeacher"):
        shrink.run(with_students(base, it=({}, Random())), workdir)
    before = sorted(path.name for path in workdir.shrink.path.iterdir()) if workdir.shrink.path.exists() else []
    other = dataclasses.replace(workdir, path=tmp_path)
    with pytest.raises(KdError, match="expected a finished folder, got no manifest.json. Run `prepare` first"):
        shrink.run(with_students(base, it=({}, FromTeacher())), other)
    assert not list(tmp_path.iterdir())
    after = sorted(path.name for path in workdir.shrink.path.iterdir()) if workdir.shrink.path.exists() else []
    assert after == before
