"""The table of what students keep of their teacher, and students made as it says."""

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
    """Return the experiment with students name=(fields of the teacher's model, init)."""
    recipe = base.students["student_kd"]
    recipes = {
        name: dataclasses.replace(recipe, model=dataclasses.replace(base.teacher.model, **fields), init=init)
        for name, (fields, init) in students.items()
    }
    return dataclasses.replace(base, students=recipes, comparison=None)


NARROW = {"d_model": 20, "head_dim": 16, "d_ff": 40}


def rows_of(experiment, workdir):
    shrink.run(experiment, workdir)
    return json.loads((workdir.shrink.path / "shrink.json").read_text())


def test_a_whole_teacher_has_no_distance_and_a_part_has(base, workdir, capsys):
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
    out = capsys.readouterr().out
    assert "narrow *" in out and "narrow stands for same too" in out and "chance" not in out.split("Before")[0]


def test_a_second_run_gives_the_same_rows_and_the_manifest_names_its_inputs(base, workdir):
    experiment = with_students(base, narrow=(NARROW, FromTeacher(sample=30)))
    assert rows_of(experiment, workdir) == rows_of(experiment, workdir)
    inputs = workdir.shrink.inputs()
    assert inputs["students.narrow.init.sample"] == 30 and inputs["students.narrow.model.d_model"] == 20
    student.run(experiment, workdir)
    again = params_digest(initial_params(experiment, workdir, experiment.students["narrow"]))
    assert workdir.model("narrow").outputs()["first_parameters"] == again
    assert workdir.model("narrow").inputs()["students.narrow.init.width"] == "importance"


def choice_rows(experiment):
    return [(one.layers, one.init.encoder, one.init.decoder, one.configured) for one in choices(experiment)]


def test_equal_layer_choices_are_measured_once(base):
    assert choice_rows(with_students(base, it=({"decoder_layers": 1}, FromTeacher()))) == [
        ("spaced, first", (0, 1), (0,), True),
        ("last", (0, 1), (1,), False),
    ]
    assert choice_rows(with_students(base, it=({"decoder_layers": 1}, FromTeacher(decoder=(1,))))) == [
        ("listed, last", (0, 1), (1,), True),
        ("spaced, first", (0, 1), (0,), False),
    ]
    deeper = {"decoder_layers": 3}
    assert choice_rows(with_students(base, it=(deeper, FromTeacher(decoder=(0, 1, 1))))) == [
        ("listed", (0, 1), (0, 1, 1), True)
    ]


def test_a_control_that_is_also_a_student_is_measured_once(base):
    """'first' is a control of both students: it appears once."""
    students = {width: (NARROW, FromTeacher(width=width)) for width in ("importance", "random")}
    ways = [(*one.students, one.init.width, one.configured) for one in choices(with_students(base, **students))]
    assert ways == [
        ("importance", "importance", True),
        ("importance", "first", False),
        ("random", "random", True),
    ]


def test_no_student_of_the_teacher_or_no_teacher_is_refused(base, workdir, tmp_path):
    with pytest.raises(KdError, match="students: expected one with init=FromTeacher"):
        shrink.run(with_students(base, it=({}, Random())), workdir)
    before = sorted(path.name for path in workdir.shrink.path.iterdir()) if workdir.shrink.path.exists() else []
    other = dataclasses.replace(workdir, path=tmp_path)
    with pytest.raises(KdError, match="expected a finished folder, got no manifest.json. Run `prepare` first"):
        shrink.run(with_students(base, it=({}, FromTeacher())), other)
    assert not list(tmp_path.iterdir())
    after = sorted(path.name for path in workdir.shrink.path.iterdir()) if workdir.shrink.path.exists() else []
    assert after == before
