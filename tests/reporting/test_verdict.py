"""The lead decides in a few sentences; the details name every control by its paired difference, and all costs."""

import dataclasses
import re

import pytest

from kd_jax.evaluation.figures import MetricFigure
from kd_jax.experiment import Comparison
from kd_jax.reporting.paired import BETTER, SAME, UNDIRECTED, WORSE
from kd_jax.reporting.report import CacheFigures, Int8Comparison, PseudoTargetFigures
from kd_jax.reporting.verdict import (
    best_control,
    details,
    gap_is_meaningful,
    gap_recovered,
    highlighted,
    lead,
    other_warnings,
    sampled,
    warnings,
)
from tests.reporting.reports import (
    BLEU,
    COMPARISON,
    DRAFTING,
    difference,
    differences,
    int8_model,
    many_students,
    model,
    report,
    students,
)

LESS_IS_BETTER = dataclasses.replace(BLEU, label="nats", higher_is_better=False, digits=3)
NO_DIRECTION = dataclasses.replace(BLEU, label="length ratio", higher_is_better=None)
SMALL_AND_FAST = (
    "student_kd is 2.0 times smaller than the teacher outside the embeddings, and decodes 2.5 times as fast in batches "
    "and 2.0 times as fast at batch 1. "
)


def text_of(one):
    """The paragraphs below the table."""
    return "\n".join(details(one))


def against(control, verdict, mean, interval, **changed):
    """The quickstart's report, whose distilled student differs from a control by this much."""
    return report(differences=report().differences | {control: difference(verdict, mean, interval)}, **changed)


def test_lead_says_that_distillation_added_nothing():
    """1,313,024 / 656,512 parameters are 2; 10,000 / 4,000 and 6,000 / 3,000 tokens a second are 2.5 and 2."""
    assert lead(against("student_init", SAME, -0.5, (-1.35, 0.35))) == SMALL_AND_FAST + (
        "This test sees no difference from the teacher (+0.8 BLEU, 95% interval -0.2 to +1.8). Distillation added "
        "nothing that this test can see over the best control, student_init (-0.5 BLEU, 95% interval -1.4 to +0.3); it "
        "cost 1 min 0 s and 29.6 MB for the teacher's outputs, and 27 s more training."
    )


@pytest.mark.parametrize(
    "verdict, mean, interval, words",
    [
        (
            BETTER,
            1.234,
            (0.634, 1.834),
            (
                "Distillation was worth 1.2 BLEU over the best control, student_init (95% interval 0.6 to 1.8); it "
                "cost 1 min "
            ),
        ),
        (
            WORSE,
            -8.139,
            (-14.75, -1.528),
            "Distillation was not worth it: student_kd is 8 BLEU worse than the best control, student_init (95% "
            "interval 2 to 15); it cost 1 min ",
        ),
    ],
)
def test_lead_says_whether_distillation_was_worth_it(verdict, mean, interval, words):
    assert words in lead(against("student_init", verdict, mean, interval))


@pytest.mark.parametrize(
    "verdict, mean, interval, metric, words",
    [
        (WORSE, -8.139, (-14.75, -1.528), BLEU, "It is 8 BLEU worse than the teacher (95% interval 2 to 15)."),
        (BETTER, 2.0, (1.0, 3.0), BLEU, "It is 2.0 BLEU better than the teacher (95% interval 1.0 to 3.0)."),
        (
            WORSE,
            0.00937,
            (0.00529, 0.01345),
            LESS_IS_BETTER,
            "It is 0.009 nats worse than the teacher (95% interval 0.005 to 0.013).",
        ),
    ],
)
def test_lead_says_what_the_student_loses(verdict, mean, interval, metric, words):
    assert words in lead(against("teacher", verdict, mean, interval, metrics=(metric,)))


@pytest.mark.parametrize(
    "batched, single, words",
    [
        (4000.0, 6000.0, "decodes as fast in batches and 2.0 times as fast at batch 1."),
        (1800.0, 1350.0, "decodes 2.2 times slower in batches and 2.2 times slower at batch 1."),
        (1800.0, 6000.0, "decodes 2.2 times slower in batches and 2.0 times as fast at batch 1."),
        (80_000.0, 3010.0, "decodes 20 times as fast in batches and as fast at batch 1."),
    ],
)
def test_slowdown_reads_as_one_in_the_lead(batched, single, words):
    """The teacher decodes 4,000 tokens a second in batches and 3,000 at batch 1."""
    speed = {"decode_tokens_per_second": batched, "decode_tokens_per_second_single": single}
    text = lead(report(models=report().models | {"student_kd": model(22.9, speed=speed)}))
    assert words in text and "0." not in text.split(" This test")[0]


@pytest.mark.parametrize(
    "parameters, words",
    [(5_252_096, "is 4.0 times larger than the teacher"), (1_313_024, "is as large as the teacher")],
)
def test_lead_about_a_student_that_is_not_smaller(parameters, words):
    student = model(22.9, training={"parameters_outside_embeddings": parameters})
    assert words in lead(report(models=report().models | {"student_kd": student}))


@pytest.mark.parametrize("metric, best", [(BLEU, "student_init"), (LESS_IS_BETTER, "student_scratch")])
def test_best_control_by_the_direction_of_the_metric(metric, best):
    """student_scratch has 8.86 and student_init 23.45."""
    assert best_control(report(metrics=(metric,))) == best
    assert f"the best control, {best} (" in lead(report(metrics=(metric,)))


@pytest.mark.parametrize(
    "signals, named, best",
    [
        ({"a": (), "b": (), "c": ("online",), "kd": ("topk",)}, (), "b"),  # c is better, and distilled too
        ({"a": ("x",), "b": ("x",), "c": ("x",), "kd": ("topk",)}, (), "c"),  # all are distilled
        ({"a": (), "b": (), "c": (), "kd": ("topk",)}, ("a",), "a"),  # the baseline and the named ones alone
        ({"a": (), "b": (), "c": ("x",), "kd": ("topk",)}, ("a", "c"), "c"),
    ],
)
def test_controls_are_the_named_ones_or_those_without_the_teacher(signals, named, best):
    of_others = differences(teacher=SAME, a=BETTER, b=BETTER, c=SAME)
    one = report(
        models=students(a=10, b=12, c=14, kd=15),
        comparison=Comparison("a", "kd", named),
        differences=of_others,
        teacher_signals=signals,
    )
    assert best_control(one) == best
    kind = "best other student" if signals[best] and not named else "best control"
    assert f"over the {kind}, {best} (" in lead(one)


@pytest.mark.parametrize(
    "signal, seconds, cost",
    [
        ("topk", 89.0, "; it cost 1 min 0 s and 29.6 MB for the teacher's outputs."),
        ("Online", 149.0, "; it cost 1 min 0 s more training."),
        ("Online", 80.0, ")."),
    ],
)
def test_lead_names_no_cost_that_there_is_not(signal, seconds, cost):
    """The best control was trained for 89 s."""
    models = report().models | {"student_kd": model(22.9, training={"seconds": seconds})}
    signals = report().teacher_signals | {"student_kd": (signal,)}
    assert lead(report(models=models, teacher_signals=signals)).endswith(cost)


def test_cost_has_the_students_own_pseudo_targets_and_caches():
    """60.2 + 100 + 20 s and 29,622,272 + 7,000,000 + 400,000 bytes; another student's cache does not count."""
    outputs = {
        "train_beam4": PseudoTargetFigures(9, 7_000_000, 100.0),
        "best_beam4": PseudoTargetFigures(9, 400_000, 20.0),
    }
    caches = report().caches | {"sampled": CacheFigures(9, 90_000_000, 1.0, 3600.0)}
    signals = report().teacher_signals | {"student_kd": ("train_beam4", "best_beam4", "topk"), "student_init": ()}
    one = report(caches=caches, pseudo_targets=outputs, teacher_signals=signals)
    assert "; it cost 3 min 0 s and 37.0 MB for the teacher's outputs, and" in lead(one)
    assert (
        "the cache topk took 1 min 0 s and 29.6 MB, the cache sampled took 1 h 0 min and 90.0 MB, the pseudo-targets "
        "train_beam4 took 1 min 40 s and 7.0 MB and the pseudo-targets best_beam4 took 20 s and 400.0 kB."
        in text_of(one)
    )


def test_lead_without_a_comparison_is_about_the_best_student():
    """student_init has 23.45, and reads nothing of the teacher in training."""
    of_others = differences(teacher=SAME, student_scratch=BETTER, student_kd=SAME)
    one = report(comparison=None, differences=of_others, teacher_gain=None, gap_recovered=None)
    assert lead(one) == (
        "The best of 3 students, student_init, is 2.0 times smaller than the teacher outside the embeddings, and "
        "decodes 2.5 times as fast in batches and 2.0 times as fast at batch 1. This test sees no difference from "
        "the teacher (+0.8 BLEU, 95% interval -0.2 to +1.8). It reads nothing of the teacher in training, and does "
        "not differ detectably from the best distilled student, student_kd (+0.8 BLEU, 95% interval -0.2 to +1.8)."
    )


def test_lead_without_a_comparison_about_a_distilled_student():
    models = report().models | {"student_kd": model(25.0)}
    one = report(models=models, comparison=None, teacher_gain=None, gap_recovered=None)
    text = lead(one)
    assert text.startswith("The best of 3 students, student_kd, is 2.0 times smaller")
    assert "Distillation added nothing that this test can see over the best control, student_init (" in text


@pytest.mark.parametrize(
    "name, words",
    [
        ("student_kd", "There is no other student, so nothing shows what distillation added; it cost 1 min 0 s and "),
        (
            "student_init",
            "No student reads anything of the teacher in training, so nothing shows what distillation adds.",
        ),
    ],
)
def test_lead_about_a_single_student(name, words):
    models = {"teacher": report().models["teacher"], name: model(22.9)}
    text = lead(report(models=models, comparison=None, differences=differences(teacher=SAME), teacher_gain=None))
    assert text.startswith(f"The student, {name}, is 2.0 times") and words in text


def test_lead_without_students():
    one = report(models=students(), comparison=None, differences={}, teacher_gain=None, gap_recovered=None)
    assert lead(one) == "Only the teacher was trained: BLEU 30.0, 95% interval 28.5 to 31.5."
    assert details(one) == []


def test_lead_without_a_teacher():
    models = {name: figures for name, figures in report().models.items() if name != "teacher"}
    one = report(models=models, teacher_gain=None, gap_recovered=None)
    assert lead(one) == (
        "student_kd has 656.5 k parameters outside the embeddings, and decodes 10,000 tokens a second in batches and "
        "6,000 at batch 1. It has BLEU 22.9, 95% interval 21.4 to 24.4; the gap to its teacher, imported as "
        "log-probabilities, is unknown. Distillation added nothing that this test can see over the best control, "
        "student_init (+0.8 BLEU, 95% interval -0.2 to +1.8); it cost 1 min 0 s and 29.6 MB for the teacher's "
        "outputs, and 27 s more training."
    )
    assert "imported as log-probabilities" in text_of(one) and "the teacher 7.1 MB" not in text_of(one)


def test_lead_by_a_metric_without_a_direction():
    of_others = {name: difference(UNDIRECTED, 0.1, (0.05, 0.15)) for name in report().differences}
    undirected = {"metrics": (NO_DIRECTION,), "differences": of_others, "gap_recovered": None}
    one = report(teacher_gain=difference(UNDIRECTED), **undirected)
    assert lead(one) == SMALL_AND_FAST + (
        "Against the teacher it has +0.10 length ratio, 95% interval +0.05 to +0.15. Nothing says whether "
        "distillation was worth it, because length ratio has no direction (against student_scratch +0.10 length "
        "ratio, 95% interval +0.05 to +0.15); it cost 1 min 0 s and 29.6 MB for the teacher's outputs, and 10 s more "
        "training."
    )
    assert (
        "student_kd (length ratio 22.9, 95% interval 21.4 to 24.4), has no verdict against student_scratch"
        in text_of(one)
    )
    assert warnings(one) == []
    of_others = {name: difference(UNDIRECTED, 0.1, (0.05, 0.15)) for name in ("teacher", "student_init", "student_kd")}
    alone = report(comparison=None, teacher_gain=None, **undirected | {"differences": of_others})
    assert lead(alone) == (
        "No student is the best, because length ratio has no direction, and the config has no comparison."
    )
    assert text_of(alone).startswith("The student with the lowest length ratio is student_scratch: ")


@pytest.mark.parametrize("one", [report(), many_students()], ids=["three", "fifty"])
def test_lead_is_short(one):
    """At most three sentences, and no list of students."""
    assert len(lead(one)) < 560 and len(re.findall(r"\.(?: |$)", lead(one))) == 3


def test_details_do_not_credit_initialisation_to_distillation():
    """With the quickstart's own figures."""
    text = text_of(report())
    assert "is better than student_scratch (8.9) and does not differ detectably from student_init (23.4)" in text
    assert "detects no gain from distillation over student_init." in text
    assert "closes 106% of the gap from student_scratch to the teacher (student_init: 110%)" in text


@pytest.mark.parametrize(
    "verdicts, phrases, absent",
    [
        ((BETTER, BETTER), ["is better than a (20.0) and b (10.0)"], ["no gain", "reduced quality"]),
        (
            (WORSE, BETTER),
            ["is better than b (10.0)", "is worse than a (20.0)", "reduced quality relative to a."],
            ["no gain"],
        ),
        (
            (WORSE, SAME),
            ["is worse than a (20.0)", "does not differ detectably from b (10.0)", "no gain from distillation over b"],
            [],
        ),
    ],
)
def test_details_name_every_control_with_its_verdict(verdicts, phrases, absent):
    of_controls = differences(teacher=SAME, **dict(zip("ab", verdicts, strict=True)))
    models = students(a=20, b=10, kd=15)
    comparison = Comparison("b", "kd")
    text = text_of(
        report(models=models, comparison=comparison, differences=of_controls, teacher_gain=None, gap_recovered=None)
    )
    assert all(phrase in text for phrase in phrases) and not any(phrase in text for phrase in absent)


def test_details_name_gain_and_cost():
    text = text_of(report())
    assert "50% of the parameters" in text
    assert "is faster (2.50 times the tokens a second, 2.00 times at batch 1)" in text
    assert "does not differ detectably from it (+0.8 BLEU, 95% interval -0.2 to +1.8)" in text
    assert "student_kd 1 min 56 s, student_init 1 min 29 s and student_scratch 1 min 46 s" in text
    assert "after 5 min 36 s for the teacher" in text and "the cache topk took 1 min 0 s and 29.6 MB" in text
    assert "student_kd has 4.4 MB, the teacher 7.1 MB" in text


def test_details_of_fifty_students_name_at_most_five():
    """Student i has BLEU i / 2, the distilled one 24.5; the intervals of the differences are +- 1."""
    text = text_of(many_students())
    assert (
        "is better than 47 of 49 other students (s46_kd 23.0, s45_kd 22.5, s44_kd 22.0, s43_kd 21.5, s42_kd 21.0 and "
        "42 more) "
        "and does not differ detectably from s47_kd (23.5) and s48_kd (24.0)." in text
    )
    assert "(s48_kd: 80%, s47_kd: 78%, s46_kd: 77%, s45_kd: 75%, s44_kd: 73% and 43 more)" in text  # of 30 BLEU
    assert "s1_kd 1 min 56 s, s2_kd 1 min 56 s and 45 more students 1 h 27 min, after" in text  # 45 * 116 s
    assert len(set(re.findall(r"s\d+_\w\w", text))) < 20


def test_fifty_caches_are_not_listed():
    caches = {f"c{i}": CacheFigures(9, 1_000_000, 1.0, 60.0) for i in range(50)}
    text = text_of(report(caches=caches))
    assert "the cache c4 took 1 min 0 s and 1.0 MB and 45 more of these took 45 min 0 s and 45.0 MB." in text


@pytest.mark.parametrize(
    "speedup, words", [(1.449, "1.45 times as fast"), (0.45, "more slowly: in 2.22 times the time")]
)
def test_details_name_the_speed_as_a_draft(speedup, words):
    """Drafts that slow the teacher down read as a slowdown."""
    student = model(22.90, drafting=dataclasses.replace(DRAFTING, draft_speedup=speedup))
    text = text_of(report(models=report().models | {"student_kd": student}))
    assert "has 71% of its tokens accepted" in text and words in text
    assert "draft" not in text_of(report())


@pytest.mark.parametrize("metric, best", [(BLEU, "a"), (LESS_IS_BETTER, "b")])
def test_details_are_about_the_best_student_without_a_comparison(metric, best):
    other = "b" if best == "a" else "a"
    text = text_of(
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
    assert text.startswith(f"The best student is {best}:") and "Against the teacher (30.0" in text
    assert "distilled" not in text and "cache" not in text


def test_gap_recovered_closed_form():
    up = {"teacher": 30.0, "student_scratch": 10.0, "student_kd": 25.0}
    assert gap_recovered(up, COMPARISON, True) == 0.75  # (25 - 10) / (30 - 10)
    assert gap_recovered(up, None, True) is None and gap_recovered(up, COMPARISON, False) is None
    down = {"teacher": 30.0, "student_scratch": 40.0, "student_kd": 38.0}
    assert gap_recovered(down, COMPARISON, False) == 0.2 and gap_recovered(down, COMPARISON, True) is None


@pytest.mark.parametrize("comparison", [COMPARISON, None])
def test_int8_model_has_a_sentence_and_no_part_in_the_others(comparison):
    """Though it is the best of all."""
    int8_difference = difference(SAME, -0.12484, (-0.25, 0.000312))
    verdicts = report().differences | differences(student_kd=SAME)
    plain = report(comparison=comparison, differences=verdicts)
    in_int8 = int8_model(24.4, decode_tokens_per_second=8000.0, decode_tokens_per_second_single=9000.0)
    with_int8 = dataclasses.replace(
        plain,
        models={**plain.models, "student_kd_int8": in_int8},
        int8={"student_kd_int8": Int8Comparison("student_kd", int8_difference)},
    )
    assert lead(with_int8) == lead(plain)
    assert details(with_int8)[:-1] == details(plain)
    assert details(with_int8)[-1] == (
        "With int8 weights student_kd (student_kd_int8: 24.4) has 1.2 MB instead of 4.4 MB, is slower in batches "
        "(0.80 times the tokens a second) and faster at batch 1 (1.50 times), and does not differ detectably "
        "from itself with float weights (-0.12 BLEU, 95% interval -0.25 to +0.00)."
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
    assert words in text_of(report(models=report().models | {"student_kd": model(22.9, speed=speed)}))


def test_figures_alike_in_print_have_their_difference():
    verdicts = {"student_init": difference(BETTER, 0.0031, (0.0012, 0.005)), "student_scratch": difference(BETTER)}
    models = report().models | {"student_init": model(22.8995)}
    text = text_of(report(models=models, differences=report().differences | verdicts))
    assert "student_init (22.9; +0.0031 BLEU, 95% interval +0.0012 to +0.0050)" in text  # half of the width: 0.0019
    assert "student_scratch (8.9)" in text


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
        "copy needs no model and has BLEU 13.7, better than teacher (3.5) and student_kd (4.3)",
        "student_scratch: empty",
    ]
    assert not gap_is_meaningful(poor)
    text = text_of(dataclasses.replace(poor, gap_recovered=None))
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
    assert not gap_is_meaningful(weak) and words in text_of(weak) and "closes" not in text_of(weak)


def test_winning_text_that_looks_the_same_in_print_has_more_digits():
    (warning,) = warnings(report(baselines=of_copy(22.94)))  # intervals of +- 1 and 1.5 have one decimal
    assert warning == "copy needs no model and has BLEU 22.94, better than teacher (22.09) and student_kd (22.90)"


def test_warnings_of_fifty_students_are_a_few_lines():
    one = many_students()
    shown, rest = warnings(one), other_warnings(one)
    assert shown == [
        "s0_ce: 0 of 1,068 texts are empty",
        "s40_ce: 40 of 1,068 texts are empty",
        "s49_kd: 49 of 1,068 texts are empty",
        "47 more models have warnings, at the end of the report: s1_kd, s2_kd, s3_kd, s4_kd, s5_kd and 42 more",
    ]
    assert len(rest) == 47 and rest[0] == "s1_kd: 1 of 1,068 texts are empty" and other_warnings(report()) == []


def test_highlighted_models():
    """All of eight; of more the teacher, the distilled one, and at most six controls, the best one among them."""
    assert highlighted(many_students(7)) == ["teacher", "s0_ce", *(f"s{i}_kd" for i in range(1, 7))]
    assert highlighted(many_students()) == ["teacher", "s0_ce", "s40_ce", "s49_kd"]
    names = list(many_students().models)
    comparison = Comparison(baseline="s0_ce", distilled="s49_kd", controls=tuple(names[2:12]))
    named = dataclasses.replace(many_students(), comparison=comparison)
    assert highlighted(named) == ["teacher", "s0_ce", "s1_kd", "s2_kd", "s3_kd", "s4_kd", "s10_ce", "s49_kd"]
    assert sampled(named) == ["teacher", "s10_ce", "s49_kd"] and sampled(report()) == list(report().models)


def test_warnings_name_the_model():
    models = {"teacher": model(30), "kd": model(1, warnings=("3 of 9 texts are empty",))}
    assert warnings(report(models=models)) == ["kd: 3 of 9 texts are empty"]
