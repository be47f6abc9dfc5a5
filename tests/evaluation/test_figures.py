"""Figures as JSON: optional parts, missing keys."""

import json

import pytest

from kd_jax.errors import KdError
from kd_jax.evaluation.figures import CachedCloseness, MetricFigure, read_baselines, read_model_figures
from tests.reporting.reports import DRAFTING, model

OFFLINE = CachedCloseness(
    cross_entropy=2.0,
    calibration_error=0.1,
    kl_to_teacher=0.3,
    agreement=0.8,
    acceptance=0.7,
    kl_error=0.01,
    acceptance_error=0.02,
)


@pytest.mark.parametrize("figures", [model(20.0), model(20.0, offline=OFFLINE, drafting=DRAFTING)])
def test_model_figures_round_trip(figures, tmp_path):
    (tmp_path / "kd.json").write_text(json.dumps(figures.to_json()))
    assert read_model_figures(tmp_path / "kd.json", ["bleu", "chrf"]) == figures


def test_optional_parts_have_no_keys():
    keys = model(20.0).to_json().keys()
    assert not keys & {"offline", "draft_tokens", "chrf_beam", "warnings"}
    assert model(20.0, offline=OFFLINE).to_json()["offline"]["kl_error"] == 0.01


@pytest.mark.parametrize("key", ["chrf_ci", "agreement", "bytes", "decode_tokens_per_second", "examples"])
def test_missing_figure_is_named(key, tmp_path):
    flat = model(20.0).to_json()
    del flat[key]
    (tmp_path / "kd.json").write_text(json.dumps(flat))
    with pytest.raises(KdError, match=f"kd.json: expected the figure '{key}', got none. Run `evaluate --force` again"):
        read_model_figures(tmp_path / "kd.json", ["bleu", "chrf"])


def test_baseline_without_likelihoods_has_no_value(tmp_path):
    (tmp_path / "baselines.json").write_text(json.dumps({"copy": {"bits": None, "bits_ci": None}}))
    assert read_baselines(tmp_path / "baselines.json", ["bits"]) == {"copy": {"bits": MetricFigure(None)}}
    with pytest.raises(KdError, match="expected the figure 'bleu_ci'"):
        read_baselines(tmp_path / "baselines.json", ["bleu"])
