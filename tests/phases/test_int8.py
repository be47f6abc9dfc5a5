"""A student measured with int8 weights beside itself: every figure, its texts, a sentence; nothing else differs."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from kd_jax.artifacts import checkpoint
from kd_jax.artifacts.workdir import Workdir
from kd_jax.errors import KdError
from kd_jax.evaluation.candidates import load_candidates
from kd_jax.phases import cache, evaluate, prepare, report, student, teacher
from tests.helpers.runs import linked_run, smoke

SHORT = """
--teacher.training.steps 60 --students.student_scratch.training.steps 30 --buckets 32
--evaluation.bootstrap 20 --evaluation.speed-texts 1 --evaluation.cached-k 8 --task.decoding.beam 1
--task.decoding.length-ratio 0.02
"""
TIMED = (
    "decode_tokens_per_second",
    "decode_texts_per_second",
    "decode_tokens_per_second_single",
    "decode_texts_per_second_single",
    "draft_tokens_per_second",
    "draft_speedup",
)


pytestmark = pytest.mark.extended  # a run of its own


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory, lax_promotion):
    """(experiment, its workdir; the same trained models measured without int8 weights)."""
    base = smoke(root, SHORT.split())
    students = {name: base.students[name] for name in ("student_scratch", "student_kd")}
    base = dataclasses.replace(base, students=students)
    experiment = dataclasses.replace(base, evaluation=dataclasses.replace(base.evaluation, int8=("student_kd",)))
    workdir = Workdir(tmp_path_factory.mktemp("int8"))
    for phase in (prepare, teacher, cache, student, evaluate, report):
        phase.run(experiment, workdir)
    plain = linked_run(workdir, tmp_path_factory.mktemp("plain") / "run", "data", "teacher", "cache", "students")
    evaluate.run(base, plain)
    return experiment, workdir, plain


def figures(workdir, name):
    return json.loads((workdir.evaluation.path / f"{name}.json").read_text())


def test_every_figure_is_measured_but_those_of_a_training(runs):
    experiment, workdir, _ = runs
    ours, theirs = (figures(workdir, name) for name in ("student_kd_int8", "student_kd"))
    assert theirs.keys() - ours.keys() == {"draft_tokens", "draft_acceptance", *TIMED[-2:]}  # the leading student's
    absent = {"loss_before_first_step", "train_tokens_per_second", "seconds"}
    assert {key for key, value in ours.items() if value is None} == absent
    assert abs(ours["cross_entropy"] - theirs["cross_entropy"]) < 0.02
    assert 0 < abs(ours["kl_to_teacher"] - theirs["kl_to_teacher"]) < 0.02
    assert ours["agreement"] > theirs["agreement"] - 0.1 and ours["parameters"] == theirs["parameters"]

    params = checkpoint.load_params(workdir.model("student_kd"), experiment.students["student_kd"].model.build(60).init)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    rows, _ = params["embedding"].shape
    in_8_bits = sum(np.prod(shape) for shape in shapes if len(shape) == 2)
    scales = rows + sum(shape[1] for shape in shapes if len(shape) == 2) - params["embedding"].shape[1]
    assert ours["bytes"] == in_8_bits + 4 * (scales + sum(np.prod(shape) for shape in shapes if len(shape) == 1))


def test_other_models_are_measured_as_without_it(runs):
    _, workdir, plain = runs
    for name in ("teacher", "student_scratch", "student_kd"):
        texts = [(one.evaluation.path / f"{name}.jsonl").read_bytes() for one in (workdir, plain)]
        assert texts[0] == texts[1]
        ours, theirs = ({k: v for k, v in figures(one, name).items() if k not in TIMED} for one in (workdir, plain))
        assert ours == theirs
    assert not list(plain.evaluation.path.glob("*int8*"))


def test_the_report_says_what_int8_cost_and_gained(runs):
    """In the tables, the plot, the samples and one sentence; never as the student that is led with."""
    _, workdir, _ = runs
    told = json.loads((workdir.report.path / "report.json").read_text())
    assert list(told["models"]) == ["teacher", "student_scratch", "student_kd", "student_kd_int8"]
    assert list(told["differences"]) == ["teacher", "student_scratch"] and list(told["int8"]) == ["student_kd_int8"]
    in_int8 = told["int8"]["student_kd_int8"]
    bleu = {name: model["bleu"] for name, model in told["models"].items()}
    assert in_int8["of"] == "student_kd"
    assert in_int8["difference"]["mean"] == pytest.approx(bleu["student_kd_int8"] - bleu["student_kd"])
    page = (workdir.report.path / "report.md").read_text().replace("\\_", "_")
    assert page.count("With int8 weights student_kd (student_kd_int8: ") == 1
    assert page.count("student_kd_int8 is student_kd with int8 weights") == 1
    assert page.count("student_kd_int8") > 4 and "The distilled student, student_kd (" in page


def test_weights_that_are_elsewhere_are_refused(runs, monkeypatch):
    experiment, workdir, _ = runs
    experiment = dataclasses.replace(
        experiment, evaluation=dataclasses.replace(experiment.evaluation, int8=("teacher",))
    )
    monkeypatch.setattr(Workdir, "teacher_is_imported", True)
    with pytest.raises(KdError, match="evaluation.int8: expected models trained in this workdir, got 'teacher'"):
        load_candidates(experiment, workdir)
