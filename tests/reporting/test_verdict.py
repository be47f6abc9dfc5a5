"""The lead names every control by its paired difference, what was gained and what it cost."""

import dataclasses

import pytest

from kd_jax.evaluation.figures import MetricFigure
from kd_jax.experiment import Comparison
from kd_jax.reporting.paired import BETTER, SAME, WORSE
from kd_jax.reporting.report import Int8Comparison
from kd_jax.reporting.verdict import gap_is_meaningful, gap_recovered, lead, warnings
from tests.reporting.reports import (
    BLEU,
    COMPARISON,
    DRAFTING,
    difference,
    differences,
    int8_model,
    model,
    report,
    students,
)

LESS_IS_BETTER = dataclasses.replace(BLEU, label="nats", higher_is_better=False, digits=3)


def test_lead_does_not_credit_initialisation_to_distillation():
    """With the quickstart's own figures."""
    text = lead(report())
    assert "is better than student_scratch (8.86) and does not differ detectably from student_init (23.45)" in text
    assert "detects no gain from distillation over student_init." in text
    assert "closes 106% of the gap from student_scratch to the teacher (student_init: 110%)" in text


@pytest.mark.parametrize(
    "verdicts, phrases, absent",
    [
        ((BETTER, BETTER), ["is better than a (20.00) and b (10.00)"], ["no gain", "reduced quality"]),
        (
            (WORSE, BETTER),
            ["is better than b (10.00)", "is worse than a (20.00)", "reduced quality relative to a."],
            ["no gain"],
        ),
        (
            (WORSE, SAME),
            [
                "is worse than a (20.00)",
                "does not differ detectably from b (10.00)",
                "no gain from distillation over b",
            ],
            [],
        ),
    ],
)
def test_lead_names_every_control_with_its_verdict(verdicts, phrases, absent):
    of_controls = differences(teacher=SAME, **dict(zip("ab", verdicts, strict=True)))
    models = students(a=20, b=10, kd=15)
    comparison = Comparison("b", "kd")
    text = lead(
        report(models=models, comparison=comparison, differences=of_controls, teacher_gain=None, gap_recovered=None)
    )
    assert all(phrase in text for phrase in phrases) and not any(phrase in text for phrase in absent)


def test_lead_names_gain_and_cost():
    text = lead(report())
    assert "50% of the parameters" in text
    assert "is faster (2.50 times the tokens a second, 2.00 times at batch 1)" in text
    assert "does not differ detectably from it (+0.81 BLEU, 95% interval -0.2 to +1.8)" in text
    assert "student_kd 1 min 56 s, student_scratch 1 min 46 s and student_init 1 min 29 s" in text
    assert "after 5 min 36 s for the teacher" in text and "the cache topk took 1 min 0 s and 29.6 MB" in text
    assert "student_kd has 4.4 MB, the teacher 7.1 MB" in text and "\n" not in text


@pytest.mark.parametrize(
    "speedup, words", [(1.449, "1.45 times as fast"), (0.45, "more slowly: in 2.22 times the time")]
)
def test_lead_names_the_speed_as_a_draft(speedup, words):
    """Drafts that slow the teacher down read as a slowdown."""
    student = model(22.90, drafting=dataclasses.replace(DRAFTING, draft_speedup=speedup))
    text = lead(report(models=report().models | {"student_kd": student}))
    assert "has 71% of its tokens accepted" in text and words in text
    assert "draft" not in lead(report())


@pytest.mark.parametrize("metric, best", [(BLEU, "a"), (LESS_IS_BETTER, "b")])
def test_lead_is_about_the_best_student_without_a_comparison(metric, best):
    other = "b" if best == "a" else "a"
    text = lead(
        report(
            models=students(a=20, b=10),
            comparison=None,
            metrics=(metric,),
            differences=differences(teacher=SAME, **{other: BETTER}),
            teacher_gain=None,
            gap_recovered=None,
            caches={},
        )
    )
    assert text.startswith(f"The best student is {best}:") and "Against the teacher (30.00" in text
    assert "distilled" not in text and "cache" not in text


def test_lead_without_students():
    assert lead(report(models=students(), comparison=None)).startswith("Only the teacher was trained: BLEU 30.00")


def test_lead_without_a_teacher():
    models = {name: figures for name, figures in report().models.items() if name != "teacher"}
    text = lead(report(models=models, teacher_gain=None, gap_recovered=None))
    assert "imported as log-probabilities" in text and "the teacher 7.1 MB" not in text


def test_gap_recovered_closed_form():
    up = {"teacher": 30.0, "student_scratch": 10.0, "student_kd": 25.0}
    assert gap_recovered(up, COMPARISON, True) == 0.75  # (25 - 10) / (30 - 10)
    assert gap_recovered(up, None, True) is None and gap_recovered(up, COMPARISON, False) is None
    down = {"teacher": 30.0, "student_scratch": 40.0, "student_kd": 38.0}
    assert gap_recovered(down, COMPARISON, False) == 0.2 and gap_recovered(down, COMPARISON, True) is None


@pytest.mark.parametrize("comparison", [COMPARISON, None])
def test_int8_model_has_a_sentence_and_no_part_in_the_others(comparison):
    """Though it is the best of all."""
    int8_difference = difference(SAME, 1.5, (-0.25, 0.000312))
    verdicts = report().differences | differences(student_kd=SAME)
    plain = report(comparison=comparison, differences=verdicts)
    in_int8 = int8_model(24.4, decode_tokens_per_second=8000.0, decode_tokens_per_second_single=9000.0)
    with_int8 = dataclasses.replace(
        plain,
        models={**plain.models, "student_kd_int8": in_int8},
        int8={"student_kd_int8": Int8Comparison("student_kd", int8_difference)},
    )
    assert lead(with_int8) == lead(plain) + (
        " With int8 weights student_kd (student_kd_int8: 24.40) has 1.2 MB instead of 4.4 MB, is slower in batches "
        "(0.80 times the tokens a second) and faster at batch 1 (1.50 times), and does not differ detectably "
        "from itself with float weights (+1.5 BLEU, 95% interval -0.25 to +0.00031)."
    )


@pytest.mark.parametrize(
    "batched, single, words",
    [
        (4000.0, 6000.0, "is faster (1.00 times the tokens a second, 2.00 times at batch 1)"),
        (1800.0, 1350.0, "is slower (0.45 times the tokens a second, 0.45 times at batch 1)"),
        (1800.0, 6000.0, "is slower in batches (0.45 times the tokens a second) and faster at batch 1 (2.00 times)"),
        (8000.0, 1350.0, "is faster in batches (2.00 times the tokens a second) and slower at batch 1 (0.45 times)"),
    ],
)
def test_slowdown_reads_as_one(batched, single, words):
    speed = {"decode_tokens_per_second": batched, "decode_tokens_per_second_single": single}
    assert words in lead(report(models=report().models | {"student_kd": model(22.9, speed=speed)}))


def test_figures_alike_in_print_have_their_difference():
    verdicts = {"student_init": difference(BETTER, 0.0031, (0.0012, 0.005)), "student_scratch": difference(BETTER)}
    models = report().models | {"student_init": model(22.8995)}
    text = lead(report(models=models, differences=report().differences | verdicts))
    assert "student_init (22.90; +0.0031 BLEU, 95% interval +0.0012 to +0.005)" in text
    assert "student_scratch (8.86)" in text


def of_copy(bleu):
    return {"copy": {"bleu": MetricFigure(bleu, (bleu - 1, bleu + 1)), "chrf": MetricFigure(17.05)}}


def test_text_without_a_model_that_wins_is_the_first_warning():
    """With the figures of a run whose copied source texts were better than all of its models."""
    models = {
        "teacher": model(3.5),
        "student_scratch": model(2.5, warnings=("empty",)),
        "student_init": model(4.1),
        "student_kd": model(4.3),
    }
    poor = report(models=models, baselines=of_copy(13.7))
    assert warnings(poor) == [
        "copy needs no model and has BLEU 13.70, better than teacher (3.50) and student_kd (4.30)",
        "student_scratch: empty",
    ]
    assert not gap_is_meaningful(poor)
    text = lead(dataclasses.replace(poor, gap_recovered=None))
    assert "not stated, because copy needs no model and scores better than teacher and student_kd" in text
    assert "closes" not in text


@pytest.mark.parametrize(
    "metric, value, wins", [(BLEU, 22.95, True), (BLEU, 21.0, False), (LESS_IS_BETTER, 21.0, True)]
)
def test_text_without_a_model_wins_by_the_direction_of_the_metric(metric, value, wins):
    """Between the student's 22.90 and more or less; the teacher has 22.09."""
    one = report(metrics=(metric,), baselines=of_copy(value))
    assert bool(warnings(one)) == wins and gap_is_meaningful(one) == (not wins)


def test_round_trip_competes_with_no_model():
    one = report(baselines={"round_trip": of_copy(97.0)["copy"]})
    assert not warnings(one) and gap_is_meaningful(one)


@pytest.mark.parametrize(
    "verdict, words",
    [(SAME, "the teacher does not differ detectably from student_scratch"), (WORSE, "the teacher is worse than")],
)
def test_no_gap_where_the_teacher_is_not_better_beyond_doubt(verdict, words):
    weak = report(teacher_gain=difference(verdict), gap_recovered=None)
    assert not gap_is_meaningful(weak) and words in lead(weak) and "closes" not in lead(weak)


def test_warnings_name_the_model():
    models = {"teacher": model(30), "kd": model(1, warnings=("3 of 9 texts are empty",))}
    assert warnings(report(models=models)) == ["kd: 3 of 9 texts are empty"]
