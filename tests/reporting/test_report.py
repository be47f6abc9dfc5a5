"""report.json: what is written is what is read."""

import json

import pytest

from kd_jax.errors import KdError
from kd_jax.reporting.paired import SAME, Difference
from kd_jax.reporting.report import Int8Comparison, PseudoTargetFigures, Report, read_report
from tests.reporting.reports import DRAFTING, int8_model, model, report


@pytest.fixture
def full():
    """A report with every optional part."""
    models = {**report().models, "student_kd": model(22.9, drafting=DRAFTING, warnings=("empty",))}
    int8 = {"student_kd_int8": Int8Comparison("student_kd", Difference(0.5, (0.25, 0.75), (0.5,), SAME))}
    pseudo_targets = {"best_beam4": PseudoTargetFigures(17_632, 1_900_000, 12.5)}
    return report(models={**models, "student_kd_int8": int8_model(22.5)}, int8=int8, pseudo_targets=pseudo_targets)


def test_json_round_trip(full):
    for original in (full, report(comparison=None, gap_recovered=None)):
        assert Report.from_json(json.loads(json.dumps(original.to_json()))) == original


def test_json_models_are_flat(full):
    data = json.loads(json.dumps(full.to_json()))
    student = data["models"]["student_kd"]
    assert student["bleu_ci"] == [21.4, 24.4] and student["draft_acceptance"] == 0.714
    assert student["warnings"] == ["empty"] and "draft_tokens" not in data["models"]["teacher"]
    assert data["models"]["student_kd_int8"]["seconds"] is None
    assert data["headline"] == data["metrics"][0] and data["comparison"]["controls"] == []
    assert data["pseudo_targets"]["best_beam4"] == {"examples": 17_632, "bytes": 1_900_000, "seconds": 12.5}
    assert data["teacher_signals"]["student_kd"] == ["topk"] and data["teacher_signals"]["student_init"] == []
    assert data["int8"]["student_kd_int8"]["difference"]["interval"] == [0.25, 0.75]


def test_sampling_seconds_are_there_if_texts_were_written(full):
    models = {**full.models, "student_kd": model(22.9, training={"sampling_seconds": 75.0})}
    changed = report(models=models)
    data = json.loads(json.dumps(changed.to_json()))
    assert data["models"]["student_kd"]["sampling_seconds"] == 75.0
    assert "sampling_seconds" not in data["models"]["teacher"]
    assert Report.from_json(data) == changed


def test_read_report_names_the_missing_figure(full, tmp_path):
    data = full.to_json()
    del data["models"]["teacher"]["kl_to_teacher"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(KdError, match="report.json: expected the figure 'kl_to_teacher', got none. Run `report` again"):
        read_report(path)
