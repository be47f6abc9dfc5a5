"""An ablation's result in words and tables."""

import json

import pytest

from kd_jax.errors import KdError
from kd_jax.reporting.ablation import figures_table, lead, notes, paired_table, select_metrics, times_table
from kd_jax.tasks.summarization import Summarization
from kd_jax.tasks.translation import Translation
from tests.reporting.ablations import BLEU, LENGTH, ablation, difference


def with_verdicts(**verdicts):
    """A result whose distilled student has these verdicts on BLEU."""
    bleu = {control: {"student_kd": difference(0.3, 0.1, verdict)} for control, verdict in verdicts.items()}
    return ablation(metrics=(BLEU,), differences={"bleu": bleu})


def test_lead_names_differences_and_number_of_seeds():
    text = lead(ablation())
    assert "Over 3 seeds, student_kd has BLEU 23.00 on average." in text
    assert "better than control_ce (+0.9, 95% +0.3 to +1.5); not detectably different from control_smoothed" in text
    assert "no gain from distillation over control_smoothed." in text and "reduced quality" not in text


@pytest.mark.parametrize(
    "verdict, words", [("worse", "Distillation reduced quality relative to control_ce"), ("better", "better than")]
)
def test_lead_names_a_loss(verdict, words):
    text = lead(with_verdicts(control_ce=verdict))
    assert words in text and "no gain" not in text


def test_lead_warns_of_a_single_seed():
    assert "One seed gives no variance between trainings" in lead(ablation(seeds=(4,)))
    assert "Over 1 seed," in lead(ablation(seeds=(4,)))


def test_metric_without_direction_has_no_verdict():
    text = lead(ablation(metrics=(LENGTH,)))
    assert "a metric without direction" in text and "it is without verdict against control_ce" in text


def test_paired_table_has_a_row_for_each_other_model():
    head, teacher, student = paired_table(ablation(), BLEU, "control_ce")
    assert head == ["model", "BLEU", "difference", "95% interval", "verdict", "of seeds 0 / 1 / 2"]
    assert student == ["student_kd", "23.00", "+0.9", "+0.3 to +1.5", "better", "+0.9 / +1.0 / +0.8"]
    assert teacher[0] == "teacher"


def test_tables_of_figures_and_times_show_every_seed():
    head, *rows = figures_table(ablation())
    assert head == ["model", "BLEU", "length ratio", "KL to teacher"]
    assert rows[0] == [
        "teacher",
        "23.00 (22.00 / 23.00 / 24.00)",
        "1.00 (1.00 / 1.00 / 1.00)",
        "0.300 (0.300 / 0.300 / 0.300)",
    ]
    assert rows[-1] == ["copy", "3.00 (3.00 / 3.00 / 3.00)", "–", "–"]
    assert times_table(ablation())[-1] == ["all", "1:30", "1:30", "1:30"]


def test_notes_explain_the_intervals():
    several, single = (" ".join(notes(ablation(seeds=seeds))) for seeds in ((0, 1, 2), (0,)))
    assert "variance between the 3 seeds" in several and "8 comparisons" in several
    assert "variance between trainings is not included" in single and "Student" not in single


def test_json_has_differences_as_objects():
    data = json.loads(json.dumps(ablation().to_json()))
    assert data["metrics"][0] == {
        "name": "bleu",
        "label": "BLEU",
        "higher_is_better": True,
        "digits": 2,
        "signature": "tok:13a",
    }
    one = data["differences"]["bleu"]["control_ce"]["student_kd"]
    assert one.keys() == {"mean", "interval", "seeds", "verdict"} and one["interval"] == pytest.approx([0.3, 1.5])


def test_select_metrics_by_name():
    assert [metric.name for metric in select_metrics(Translation(), "")] == ["bleu"]
    assert [metric.name for metric in select_metrics(Summarization(), "rouge_2")] == ["rouge_2"]
    assert [metric.name for metric in select_metrics(Translation(), "all")] == ["bleu", "chrf"]
    with pytest.raises(KdError, match="--metric: expected one of rouge_l, rouge_1, rouge_2, length_ratio"):
        select_metrics(Summarization(), "bleu")
