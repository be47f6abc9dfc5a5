"""The report's words: they say so too where nothing was gained."""

import pytest

from kd_jax.evaluation import page
from kd_jax.phases.report import gap_recovered


def model(bleu, width=1.0, **changed):
    return {
        "parameters": 10,
        "parameters_outside_embeddings": 8,
        "bleu": bleu,
        "bleu_ci": [bleu - width, bleu + width],
        "chrf": 1.0,
        "bleu_beam": bleu,
        "cross_entropy": 1.0,
        "kl_to_teacher": 0.1,
        "agreement": 0.5,
        "acceptance": 0.9,
        "calibration_error": 0.02,
        "decode_tokens_per_second": 10.0,
        "decode_tokens_per_second_single": 5.0,
        "train_tokens_per_second": None,
        "sentences": 3,
        "signature": "s",
        "over_long": 0,
    } | changed


def report(teacher, kd, scratch, width=1.0):
    models = {
        "teacher": model(teacher, width),
        "student_scratch": model(scratch, width),
        "student_kd": model(kd, width),
    }
    return {
        "name": "mine",
        "task": "translation",
        "dataset": "d <b>",
        "seed": 0,
        "wall_seconds": {"teacher": 65.0},
        "models": models,
        "gap_recovered": gap_recovered(models),
        "versions": {"jax": "1"},
        "caches": {},
    }


@pytest.mark.parametrize(
    "kd, scratch, words", [(20, 10, "passes"), (10, 20, "falls behind"), (15, 14.5, "cannot be told from")]
)
def test_the_headline_is_honest(kd, scratch, words):
    assert words in page.headline(report(30, kd, scratch))


def test_gap_recovered():
    assert gap_recovered(report(30, 20, 10)["models"]) == 0.5
    assert gap_recovered(report(10, 20, 10)["models"]) is None
    assert gap_recovered({"teacher": model(3), "mine": model(2)}) is None


def test_the_page_is_self_contained_and_escaped():
    curves = {name: [{"step": 0, "valid_cross_entropy": 2.0}, {"step": 5, "loss": 1.0}] for name in ("teacher",)}
    html = page.html(report(30, 20, 10), [{"source": "a < b", "teacher": ""}], curves, "seed = 0")
    assert "a &lt; b" in html and "d &lt;b&gt;" in html and html.count("data:image/svg+xml") == 2
    assert 'src="http' not in html and 'href="http' not in html


def test_markdown_and_terminal_hold_every_model():
    for text in (page.markdown(report(30, 20, 10), []), page.text_table(report(30, 20, 10))):
        assert all(name in text for name in ("teacher", "student_scratch", "student_kd"))
