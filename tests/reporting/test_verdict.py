"""The lead: every control is named, by paired differences; what was gained, what it cost; honest where nothing was."""

import pytest

from kd_jax.reporting.paired import BETTER, SAME, WORSE
from kd_jax.reporting.verdict import gap_recovered, lead, warnings
from tests.reporting.reports import BLEU, COMPARISON, differences, model, report, students

NLL = {"name": "bleu", "label": "nats", "higher_is_better": False, "digits": 3}


def test_initialisation_is_not_credited_to_distillation():
    """The quickstart's own figures: the lead once named student_scratch alone."""
    text = lead(report())
    assert "passes student_scratch (8.86) and cannot be told from student_init (23.45)" in text
    assert "added nothing that this test can see over student_init." in text
    assert "closes 106% (student_init: 110%)" in text


@pytest.mark.parametrize(
    "verdicts, phrases, absent",
    [
        ((BETTER, BETTER), ["passes a (20.00) and b (10.00)"], ["added nothing", "cost quality"]),
        (
            (WORSE, BETTER),
            ["passes b (10.00)", "falls behind a (20.00)", "Beside a, distillation cost quality"],
            ["added nothing"],
        ),
        (
            (WORSE, SAME),
            ["falls behind a (20.00)", "cannot be told from b (10.00)", "nothing that this test can see over b"],
            [],
        ),
    ],
)
def test_every_control_has_its_verdict(verdicts, phrases, absent):
    comparison = {"baseline": "b", "distilled": "kd"}
    told = differences(teacher=SAME, **dict(zip("ab", verdicts, strict=True)))
    models = students(a=20, b=10, kd=15)
    text = lead(report(models=models, comparison=comparison, differences=told, gap_recovered=None))
    assert all(phrase in text for phrase in phrases) and not any(phrase in text for phrase in absent)


def test_gain_and_cost_are_told():
    text = lead(report())
    assert "50% of the parameters" in text and "2.5 times the tokens a second (2.0 times at batch 1)" in text
    assert "cannot be told from it (0.81 BLEU above)" in text
    assert "student_kd 1 min 56 s, student_scratch 1 min 46 s and student_init 1 min 29 s" in text
    assert "after 5 min 36 s for the teacher" in text and "the cache topk took 1 min 0 s and 29.6 MB" in text
    assert "student_kd is 4.4 MB, the teacher 7.1 MB" in text and "\n" not in text


@pytest.mark.parametrize("speedup, said", [(1.449, "come 1.45 times as fast"), (0.9, "come 0.90 times as fast")])
def test_what_the_student_is_worth_as_a_draft_is_told(speedup, said):
    """Also where it slows the teacher down."""
    drafting = {"draft_tokens": 4, "draft_acceptance": 0.714, "draft_tokens_per_second": 900.0}
    student = model(22.90, draft_speedup=speedup, **drafting)
    text = lead(report(models=report()["models"] | {"student_kd": student}))
    assert "71% of its tokens are accepted" in text and said in text
    assert "draft" not in lead(report())


@pytest.mark.parametrize("metric, best", [(BLEU, "a"), (NLL, "b")])
def test_without_a_comparison_the_best_student_in_the_metrics_direction(metric, best):
    changed = {"models": students(a=20, b=10), "comparison": None, "metrics": [metric]}
    told = differences(teacher=SAME, **{"b" if best == "a" else "a": BETTER})
    text = lead(report(**changed, differences=told, gap_recovered=None, caches={}))
    assert text.startswith(f"The best student is {best}:") and "Against the teacher (30.00" in text
    assert "distilled" not in text and "cache" not in text


def test_a_teacher_alone():
    assert lead(report(models=students(), comparison=None)).startswith("The teacher alone")


def test_gap_recovered_closed_form():
    up = students(student_scratch=10, student_kd=25)
    assert gap_recovered(up, COMPARISON, BLEU) == 0.75  # (25 - 10) / (30 - 10)
    assert gap_recovered(up, None, BLEU) is None and gap_recovered(up, COMPARISON, NLL) is None
    down = students(student_scratch=40, student_kd=38)
    assert gap_recovered(down, COMPARISON, NLL) == 0.2 and gap_recovered(down, COMPARISON, BLEU) is None


@pytest.mark.parametrize("comparison", [COMPARISON, None])
def test_int8_has_a_sentence_and_no_part_in_the_others(comparison):
    """Though it is the best of all, and no model was trained as it."""
    told = {"mean": 1.5, "interval": [-0.25, 0.000312], "seeds": [1.5], "verdict": SAME}
    plain = report(comparison=comparison)
    plain["differences"] |= differences(student_kd=SAME)
    figures = {"bytes": 1_200_000, "decode_tokens_per_second": 8000.0, "decode_tokens_per_second_single": 9000.0}
    in_int8 = model(24.4, **figures, seconds=None, loss_before_first_step=None)
    models = plain["models"] | {"student_kd_int8": in_int8}
    said = lead(plain | {"models": models, "int8": {"student_kd_int8": {"of": "student_kd", "difference": told}}})
    assert said == lead(plain) + (
        " With int8 weights student_kd (student_kd_int8: 24.40) takes 1.2 MB instead of 4.4 MB, writes 0.80 times the "
        "tokens a second (1.50 times at batch 1), and cannot be told from itself with float ones (+1.5 BLEU, 95% "
        "interval -0.25 to +0.00031)."
    )


def test_warnings_carry_the_models_name():
    models = {"teacher": model(30), "kd": model(1, warnings=["3 of 9 texts are empty"])}
    assert warnings(report(models=models)) == ["kd: 3 of 9 texts are empty"]
