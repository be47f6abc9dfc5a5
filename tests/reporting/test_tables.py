"""The tables: any task's metrics, a terminal's width, a held-out set that shrank."""

import re

from kd_jax.reporting import tables
from tests.reporting.reports import model, report, students


def test_the_summary_holds_what_is_compared_first():
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
    assert teacher == ["teacher", "1.3 M", "22.09 [20.6, 23.6]", "51.88", "0.340", "4,000", "3,000", "5:36"]
    assert [row[0] for row in others] == ["student_scratch", "student_init", "student_kd", "copy"]
    assert others[-1] == ["copy", "–", "3.21 [2.6, 3.8]", "17.05", "–", "–", "–", "–"]


def test_summary_and_details_show_every_figure():
    figures = report()
    shown = {row[0] for row in tables.details(figures)} | set(tables.summary(figures)[0])
    assert {"parameters", "on disk", "BLEU beam", "chrF [95%]", "cross-entropy", "acceptance", "train tok/s"} <= shown
    assert ["train tok/s", *"–––––"] in tables.details(figures)


def test_int8_stands_beside_the_float_one_and_had_no_training():
    figures = report(int8={"student_kd_int8": {"of": "student_kd", "difference": {}}})
    figures["models"]["student_kd_int8"] = model(22.5, seconds=None, loss_before_first_step=None, bytes=1_200_000)
    *_, row, copy = tables.summary(figures)
    assert copy[0] == "copy" and row[0] == "student_kd_int8" and row[2] == "22.50 [21.0, 24.0]" and row[-1] == "–"
    columns = {row[0]: row[-2] for row in tables.details(figures)}
    assert columns["on disk"] == "1.2 MB" and columns["train tok/s"] == columns["loss before first step"] == "–"
    assert tables.notes(figures)[-1].startswith("student_kd_int8 is student_kd with int8 weights: ")
    assert not any("int8" in note for note in tables.notes(report()))


def test_another_task_brings_its_own_metric():
    nll = {"name": "nll", "label": "bits a byte", "higher_is_better": False, "digits": 3, "signature": ""}
    figures = {"nll": 1.25, "nll_ci": None}
    models = {name: one | figures for name, one in students(small=1).items()}
    for one in models.values():
        del one["bleu"], one["bleu_ci"], one["bleu_beam"], one["chrf"], one["chrf_ci"]
    figures = report(models=models, metrics=[nll], headline=nll, comparison=None, baselines={})
    assert tables.summary(figures)[1][2] == "1.250" and tables.summary(figures)[0][2] == "bits a byte [95%]"
    assert not re.search("BLEU|chrF", str([tables.summary(figures), tables.details(figures), tables.notes(figures)]))


def test_the_terminal_is_eighty_columns_wide():
    figures = report()
    figures["models"]["teacher"] |= {"bleu": 100.0, "bleu_ci": [100.0, 100.0], "decode_tokens_per_second": 148_757.0}
    lines = tables.text_table(figures).split("\n")
    assert max(map(len, lines)) <= 80 and len(set(map(len, lines))) == 1
    assert all(word in lines[0] for word in ("params", "BLEU", "chrF", "KL", "tok/s"))
    assert [line.split()[0] for line in lines[2:]] == [*figures["models"], "copy"]


def test_long_names_push_columns_out_not_lines_over():
    table = tables.text_table(report(models=students(**{"student_of_many_layers_and_a_long_story": 3})))
    assert max(map(len, table.split("\n"))) <= 80 and "BLEU" in table


def test_a_held_out_set_that_shrank_is_said_with_its_count():
    quiet, told = (
        tables.notes(report(dropped_as_seen_in_training={"train": 0, "validation": 0, "test": count}))[0]
        for count in (0, 1412)
    )
    assert "test 1,068 (1,412 more were left out: their sources were seen in training)" in told
    assert "left out" not in quiet and "validation 530," in told


def test_times_add_up():
    assert tables.times(report())[1:] == [["teacher", "5:36"], ["student", "5:11"], ["all", "10:47"]]


def test_a_figure_that_was_not_taken_is_a_dash():
    assert tables.plain("kl_to_teacher", ".3f", "KL").cell(model(1, kl_to_teacher=None)) == tables.ABSENT


def test_a_student_that_drafts_has_its_figures_beside_dashes():
    drafting = {"draft_tokens": 4, "draft_acceptance": 0.714, "draft_tokens_per_second": 900.0, "draft_speedup": 1.45}
    models = report()["models"] | {"student_kd": model(22.90, **drafting)}
    figures = report(models=models)
    assert ["accepted drafts", "–", "–", "–", "71.4%", "–"] in tables.details(figures)
    assert ["teacher's speed with its drafts", "–", "–", "–", "1.45", "–"] in tables.details(figures)
    assert "that student_kd wrote for the teacher, 4 a round" in " ".join(tables.notes(figures))
    assert "Accepted drafts" not in " ".join(tables.notes(report())) and len(tables.details(report())) + 2 == len(
        tables.details(figures)
    )
