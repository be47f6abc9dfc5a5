"""An ablation in words and tables: what is said follows from the figures."""

import pytest

from kd_jax.errors import KdError
from kd_jax.reporting import ablation
from kd_jax.tasks.summarization import Summarization
from kd_jax.tasks.translation import Translation
from tests.reporting.ablations import BLEU, LENGTH, one, result


def against(**verdicts):
    """A result whose distilled student has these verdicts on BLEU."""
    differences = {control: {"student_kd": one(0.3, 0.1, verdict)} for control, verdict in verdicts.items()}
    return result(metrics=[BLEU], differences={"bleu": differences})


def test_the_lead_says_by_how_much_and_over_how_many_seeds():
    said = ablation.lead(result())
    assert "Over 3 seeds, student_kd has BLEU 23.00 on average." in said
    assert "better than control_ce (+0.90, 95% +0.30 to +1.50); not seen to differ from control_smoothed (+0.20" in said
    assert "added nothing that this test can see over control_smoothed." in said and "cost quality" not in said


@pytest.mark.parametrize("verdict, words", [("worse", "Beside control_ce, distillation cost quality"), ("better", "")])
def test_the_lead_says_what_distillation_cost(verdict, words):
    said = ablation.lead(against(control_ce=verdict))
    assert words in said and "added nothing" not in said


def test_the_lead_warns_of_a_single_seed():
    assert "One seed says nothing about other trainings" in ablation.lead(result(seeds=[4]))
    assert "Over 1 seed," in ablation.lead(result(seeds=[4]))


def test_a_metric_without_direction_has_no_better_side():
    said = ablation.lead(result(metrics=[LENGTH]))
    assert "neither more nor less is better" in said and "to be read beside control_ce" in said


def test_the_paired_table_has_a_row_for_each_other_model():
    head, teacher, student = ablation.paired(result(), BLEU, "control_ce")
    assert head == ["model", "BLEU", "difference", "95% interval", "verdict", "of seeds 0 / 1 / 2"]
    assert student == ["student_kd", "23.00", "+0.90", "+0.30 to +1.50", "better", "+0.90 / +1.00 / +0.80"]
    assert teacher[0] == "teacher"


def test_figures_and_times_are_those_of_every_seed():
    head, *rows = ablation.figures(result())
    assert head == ["model", "BLEU", "length ratio", "KL to teacher"]
    assert rows[0] == [
        "teacher",
        "23.00 (22.00 / 23.00 / 24.00)",
        "1.00 (1.00 / 1.00 / 1.00)",
        "0.300 (0.300 / 0.300 / 0.300)",
    ]
    assert rows[-1] == ["copy", "3.00 (3.00 / 3.00 / 3.00)", "–", "–"]
    assert ablation.times(result())[-1] == ["all", "1:30", "1:30", "1:30"]


def test_notes_say_what_the_intervals_are():
    several, single = (" ".join(ablation.notes(result(seeds=seeds))) for seeds in ([0, 1, 2], [0]))
    assert "variance between the 3 seeds is added" in several and "8 comparisons" in several
    assert "how much another training would differ is not in them" in single and "Student" not in single


def test_metrics_are_chosen_by_name():
    assert [metric.name for metric in ablation.chosen_metrics(Translation(), "")] == ["bleu"]
    assert [metric.name for metric in ablation.chosen_metrics(Summarization(), "rouge_2")] == ["rouge_2"]
    assert [metric.name for metric in ablation.chosen_metrics(Translation(), "all")] == ["bleu", "chrf"]
    with pytest.raises(KdError, match="--metric bleu: summarization has rouge_l, rouge_1, rouge_2, length_ratio;"):
        ablation.chosen_metrics(Summarization(), "bleu")
