"""Recipes: a distilled student and its controls differ in what they learn from, and in nothing else."""

import dataclasses

import pytest

from kd_jax import EncoderDecoder, Evaluation, FromTeacher, KdError, PseudoTargets, Random, Smaller, recipes, resolve
from kd_jax.artifacts.workdir import Workdir
from kd_jax.phases import run
from kd_jax.phases.check import check
from kd_jax.reporting.controls import with_controls
from kd_jax.reporting.report import read_report
from tests.helpers.runs import smoke

SMALL = Smaller(encoder_layers=1, decoder_layers=1, d_model=32, heads=2, d_ff=64)


@pytest.fixture(scope="module")
def experiment(root):
    """Return an experiment of the smoke run's teacher with students of the recipes."""
    base = smoke(root, [])
    students = recipes.with_controls(recipes.distil(base.teacher, SMALL, steps=40, references=100))
    evaluation = Evaluation(texts=20, bootstrap=20, speed_texts=1, samples=2, cached_k=8, draft=0)
    changed = {"students": students, "comparison": recipes.COMPARISON, "evaluation": evaluation}
    return resolve(dataclasses.replace(base, **changed))


def test_students_differ_in_nothing_but_what_they_learn_from(experiment):
    check(experiment)
    distilled, *controls = (experiment.students[name] for name in ("student_kd", *recipes.COMPARISON.controls))
    assert distilled.targets == PseudoTargets(of="both") and list(distilled.terms) == ["ce", "kd"]
    for control in controls:
        assert control.targets is None and [term.signal for term in control.terms.values()] == [None]
        for field in ("model", "training", "references"):
            assert getattr(control, field) == getattr(distilled, field)
    assert [type(control.init) for control in controls] == [FromTeacher, FromTeacher, Random]
    assert with_controls(experiment).students == experiment.students  # `ablate` has none to add


@pytest.mark.extended
def test_recipes_run_to_the_report(experiment, tmp_path, lax_promotion):
    workdir = Workdir(tmp_path / "run")
    run.run(experiment, workdir)
    report = read_report(workdir.report.file("report.json"))
    assert set(report.differences) == {"teacher", *recipes.COMPARISON.controls}


@pytest.mark.parametrize(
    ("options", "of", "weights"),
    [
        ({}, "train", {"ce": 0.5, "kd": 0.5}),
        ({"references": 7}, "both", {"ce": 0.5, "kd": 0.5}),
        ({"teacher_texts": False, "weight": 1.0}, None, {"kd": 1.0}),
        ({"weight": 0.0}, "train", {"ce": 1.0}),
        ({"weight": 0.75}, "train", {"ce": 0.25, "kd": 0.75}),
    ],
)
def test_options(experiment, options, of, weights):
    student = recipes.distil(experiment.teacher, SMALL, steps=10, **options)
    assert (student.targets and student.targets.of) == of
    assert {name: term.weight for name, term in student.terms.items()} == weights
    assert student.training.eval_every == 2


def test_sizes_bring_no_dropout_and_a_network_is_taken_as_it_is(experiment):
    teacher = dataclasses.replace(experiment.teacher, model=dataclasses.replace(experiment.teacher.model, dropout=0.1))
    assert recipes.distil(teacher, SMALL, steps=3).model == SMALL.resolve(experiment.teacher.model)
    model = EncoderDecoder(1, 1, d_model=16, heads=2, d_ff=32, dropout=0.3)
    assert recipes.distil(experiment.teacher, model, steps=3).model == model


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_bad_weight(experiment, weight):
    with pytest.raises(KdError, match=r"weight: expected a number in \[0, 1\], got"):
        recipes.distil(experiment.teacher, SMALL, steps=10, weight=weight)


def test_an_accelerator_multiplies_in_bfloat16_and_reads_larger_batches(experiment):
    deep = dataclasses.replace(experiment.teacher.model, encoder_layers=9)
    base = dataclasses.replace(experiment, teacher=dataclasses.replace(experiment.teacher, model=deep))
    changed = recipes.on_accelerator(base, batch=3)
    check(changed)
    for name, recipe in changed.recipes.items():
        before = base.recipes[name]
        assert recipe.training.tokens_per_batch == 3 * before.training.tokens_per_batch
        assert recipe.model.scan_layers == (name == "teacher")
        same = {"compute": "float32", "scan_layers": False}
        assert recipe.model.compute == "bfloat16" and dataclasses.replace(recipe.model, **same) == before.model
    with pytest.raises(KdError, match=r"^batch: expected an integer in \[1, .*got 0"):
        recipes.on_accelerator(base, batch=0)


def test_this_machine_changes_nothing_on_a_cpu(experiment):
    assert recipes.for_this_machine(experiment) is experiment
