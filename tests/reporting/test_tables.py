"""Tables of a report: any task's metrics, a terminal's width, missing figures."""

import dataclasses
import re

from kd_jax.evaluation.figures import MetricFigure
from kd_jax.reporting import tables
from kd_jax.reporting.paired import SAME, Difference
from kd_jax.reporting.report import Int8Comparison, MetricInfo, PseudoTargetFigures
from tests.reporting.reports import BLEU, CHRF, DRAFTING, int8_model, many_students, model, report, students


def test_summary_columns():
    head, teacher, *others = tables.summary(report())
    assert head == [
        "model",
        "parameters outside embeddings",
        "BLEU [95%]",
        "chrF",
        "KL to teacher",
        "decode tok/s",
        "tok/s at batch 1",
        "training time",
    ]
    assert teacher == ["teacher", "1.3 M", "22.1 [20.6, 23.6]", "51.9", "0.340", "4,000", "3,000", "5:36"]
    assert [row[0] for row in others] == ["student_scratch", "student_init", "student_kd", "copy"]
    assert others[-1] == ["copy", "–", "3.2 [2.6, 3.8]", "17.1", "–", "–", "–", "–"]


def test_details_have_the_other_figures():
    rows = {name: cells for name, *cells in tables.details(report())}
    assert list(rows) == [
        "model",
        "parameters",
        "on disk",
        "BLEU beam",
        "chrF [95%]",
        "cross-entropy",
        "agreement",
        "acceptance",
        "calibration error",
        "texts/s",
        "texts/s at batch 1",
        "train tok/s",
        "loss before first step",
    ]
    assert rows["BLEU beam"] == ["23.1", "9.9", "24.4", "23.9", "–"]
    assert rows["train tok/s"] == ["–"] * 5 and rows["acceptance"] == ["75.1%"] * 4 + ["–"]


def test_details_have_the_sampling_time_of_students_that_write_texts():
    models = report().models | {"student_kd": model(22.9, training={"sampling_seconds": 75.0})}
    rows = {name: cells for name, *cells in tables.details(report(models=models))}
    assert rows["sampling time"] == ["–", "–", "–", "1:15", "–"]


def test_int8_model_has_a_row_and_no_training():
    difference = Difference(0.0, (0.0, 0.0), (0.0,), SAME)
    models = report().models | {"student_kd_int8": int8_model(22.5)}
    with_int8 = report(int8={"student_kd_int8": Int8Comparison("student_kd", difference)}, models=models)
    *_, row, copy = tables.summary(with_int8)
    assert copy[0] == "copy" and row[0] == "student_kd_int8" and row[2] == "22.5 [21.0, 24.0]" and row[-1] == "–"
    details = {row[0]: row[-2] for row in tables.details(with_int8)}
    assert details["on disk"] == "1.2 MB" and details["train tok/s"] == details["loss before first step"] == "–"
    assert tables.notes(with_int8)[-1].startswith("student_kd_int8 is student_kd with int8 weights: ")
    assert not any("int8" in note for note in tables.notes(report()))


def test_metrics_come_from_the_task():
    nll = MetricInfo("nll", "bits a byte", False, 3)
    models = {
        name: dataclasses.replace(figures, metrics={"nll": MetricFigure(1.25)})
        for name, figures in students(small=1).items()
    }
    other_task = report(models=models, metrics=(nll,), comparison=None, baselines={})
    assert tables.summary(other_task)[1][2] == "1.250" and tables.summary(other_task)[0][2] == "bits a byte [95%]"
    shown = [tables.summary(other_task), tables.details(other_task), tables.notes(other_task)]
    assert not re.search("BLEU|chrF", str(shown))


def test_columns_have_the_decimals_of_their_narrowest_interval():
    """Half-widths of 1.5 and 0.12 have one and two decimals, 12 has none; the second metric has no interval."""
    models = {"teacher": model(30.0, width=1.5), "student_kd": model(22.0, width=0.12)}
    one = report(models=models, baselines={}, metrics=(BLEU, CHRF))
    assert [row[2] for row in tables.summary(one)] == ["BLEU [95%]", "30.00 [28.50, 31.50]", "22.00 [21.88, 22.12]"]
    coarse = report(models={name: model(22.0, width=12) for name in models}, baselines={})
    assert [row[2] for row in tables.summary(coarse)[1:]] == ["22 [10, 34]"] * 2
    plain = {"bleu": MetricFigure(22.0), "chrf": MetricFigure(51.88)}
    without = {name: dataclasses.replace(figures, metrics=plain) for name, figures in models.items()}
    assert [row[2:4] for row in tables.summary(report(models=without, baselines={}))[1:]] == [["22.00", "51.88"]] * 2


def test_tables_of_fifty_students_have_models_as_rows_with_the_best_first():
    one = many_students()
    for table in (tables.summary(one), tables.details(one)):
        names = [row[0] for row in table]
        assert names[:7] == ["model", "teacher", "s0_ce", "s40_ce", "s49_kd", "s48_kd", "s47_kd"]
        assert len(names) == 53 and names[-2:] == ["s1_kd", "copy"] and max(map(len, table)) < 16
    lower = dataclasses.replace(BLEU, higher_is_better=False)
    assert [row[0] for row in tables.summary(dataclasses.replace(one, metrics=(lower, CHRF)))][-2] == "s48_kd"


def test_notes_count_pseudo_targets():
    outputs = {f"best_beam{i}": PseudoTargetFigures(1234, 10, 1.0) for i in range(9)}
    note = tables.notes(report(pseudo_targets=outputs))[-1]
    assert note.startswith(
        "cache topk: 242,854 target tokens at 122 bytes; pseudo-targets best_beam0: 1,234 examples; "
    )
    assert note.endswith("and 5 more.")


def test_text_table_fits_eighty_columns():
    wide = model(100.0, width=0, speed={"decode_tokens_per_second": 148_757.0})
    models = report().models | {"teacher": wide}
    lines = tables.text_table(report(models=models)).split("\n")
    assert max(map(len, lines)) <= 80 and len(set(map(len, lines))) == 1
    assert all(word in lines[0] for word in ("params", "BLEU", "chrF", "KL", "tok/s"))
    assert [line.split()[0] for line in lines[2:]] == [*models, "copy"]


def test_text_table_drops_columns_for_long_names():
    table = tables.text_table(report(models=students(**{"student_of_many_layers_and_a_long_story": 3})))
    assert max(map(len, table.split("\n"))) <= 80 and "BLEU" in table


def test_notes_count_removed_held_out_examples():
    without, with_removed = (
        tables.notes(report(dropped_as_seen_in_training={"train": 0, "validation": 0, "test": count}))[0]
        for count in (0, 1412)
    )
    assert "test 1,068 (1,412 more were removed: their sources are in the training split)" in with_removed
    assert "removed" not in without and "validation 530," in without


def test_times_add_up():
    assert tables.times(report())[1:] == [["teacher", "5:36"], ["student", "5:11"], ["all", "10:47"]]


def test_drafting_student_has_rows_and_a_note():
    drafting = report(models=report().models | {"student_kd": model(22.90, drafting=DRAFTING)})
    details = tables.details(drafting)
    assert ["accepted drafts", "–", "–", "–", "71.4%", "–"] in details
    assert ["teacher's speed with its drafts", "–", "–", "–", "1.45", "–"] in details
    assert "student_kd drafts 4 tokens a round" in " ".join(tables.notes(drafting))
    assert "Accepted drafts" not in " ".join(tables.notes(report()))
    assert len(tables.details(report())) + 2 == len(details)
