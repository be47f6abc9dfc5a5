"""The phase `report`: from the files of a run to report.json, report.md, report.html and the terminal."""

import dataclasses
import json
import types

import pytest

from kd_jax.artifacts import manifest
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import Workdir
from kd_jax.evaluation.figures import MetricFigure, metrics_to_json
from kd_jax.experiment import Evaluation
from kd_jax.phases import report as phase
from kd_jax.tasks.translation import Translation
from tests.reporting.reports import model, report

EXAMPLES = [{"en": f"s{i}", "fr": "un chat noir dort"} for i in range(7)]
TEXTS = {
    name: [
        {"number": i, "source": example["en"], "reference": example["fr"], "greedy": text}
        for i, example in enumerate(EXAMPLES)
    ]
    for name, text in (("teacher", "un chat noir dort"), ("student", ""))
}
CACHE = {"digest": "d", "target_tokens": 2, "bytes": 8, "bytes_per_target_token": 4.0}
MANIFESTS = {
    "prepare": {
        "outputs": {
            "dataset": "d",
            "counts": {"train": 9, "test": 7},
            "dropped_as_seen_in_training": {"train": 0, "test": 2},
        },
        "seconds": 1.0,
    },
    "teacher": {"outputs": {}, "seconds": 5.0},
    "cache.topk": {"outputs": CACHE, "seconds": 3.0},
    "student.student": {"outputs": {}, "seconds": 2.0},
    "evaluate": {"outputs": {}, "seconds": 4.0, "versions": {"jax": "1"}},
}


@pytest.fixture
def built(tmp_path):
    """The report of a run whose teacher writes the references and whose student writes nothing."""
    workdir = Workdir(tmp_path)
    workdir.data.begin({})
    manifest.write_lines(workdir.data.path / "test.jsonl", EXAMPLES)
    workdir.data.finish({}, 1.0)
    workdir.evaluation.begin({})
    for name, rows in TEXTS.items():
        manifest.write_lines(workdir.evaluation.path / f"{name}.jsonl", rows)
        figures = model(20.0, training={"seconds": 2.0})
        manifest.write_json(workdir.evaluation.path / f"{name}.json", figures.to_json())
    copy = metrics_to_json({"bleu": MetricFigure(1.5, (1.0, 2.0)), "chrf": MetricFigure(9.0, (8.0, 10.0))})
    manifest.write_json(workdir.evaluation.path / "baselines.json", {"copy": copy})
    workdir.evaluation.finish({}, 4.0)
    parts = {"task": Translation(), "evaluation": Evaluation(bootstrap=20), "recipes": TEXTS}
    experiment = types.SimpleNamespace(name="mine", seed=3, comparison=None, **parts)
    return phase.build_report(experiment, workdir, MANIFESTS, TEXTS)


def test_figures_come_from_the_phases(built):
    assert built.models["teacher"].training.bytes == 4_400_000 and built.models["student"].training.seconds == 2.0
    assert built.caches["topk"].to_json() == CACHE | {"seconds": 3.0}
    assert built.wall_seconds == {"prepare": 1, "teacher": 5, "cache": 3, "student": 2, "evaluate": 4}
    assert built.comparison is None and built.gap_recovered is None
    headline = built.headline
    assert headline.signature.startswith("nrefs:1|case:mixed")
    assert (headline.name, headline.label, headline.higher_is_better, headline.digits) == ("bleu", "BLEU", True, 2)
    assert built.baselines["copy"]["bleu"].value == 1.5
    assert list(built.differences) == ["teacher"]  # from the only student
    assert built.differences["teacher"].mean == pytest.approx(-100)  # empty texts against the references


def test_degenerate_texts_are_warned_of_in_files_and_terminal(built, tmp_path):
    document = phase.build_document(built, phase.select_samples(TEXTS, "greedy", 2), {}, "seed = 3")
    phase.write(Folder(tmp_path, "report"), built, document)
    html, markdown = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    for text in (html, markdown, phase.closing_text(built)):
        assert "student: 7 of 7 texts are empty" in text
    assert json.loads((tmp_path / "report.json").read_text())["models"]["teacher"]["warnings"] == []


def test_removed_test_examples_are_counted_in_both_pages(built, tmp_path):
    phase.write(Folder(tmp_path, "report"), built, phase.build_document(built, [], {}, ""))
    for file in ("report.html", "report.md"):
        assert "7 (2 more were removed" in (tmp_path / file).read_text()


@pytest.mark.parametrize("count, rows", [(2, [0, 3]), (7, range(7)), (20, range(7))])
def test_samples_are_evenly_spaced(count, rows):
    samples = phase.select_samples(TEXTS, "greedy", count)
    assert [sample["source"] for sample in samples] == [f"s{i}" for i in rows]
    assert list(samples[0]) == ["source", "reference", "teacher", "student"]


def test_closing_text_fits_a_terminal():
    student = report().models["student_kd"].with_warnings(["repetitive " + "and again " * 12])
    warned = dataclasses.replace(report(), models={**report().models, "student_kd": student})
    lines = phase.closing_text(warned).split("\n")
    assert max(map(len, lines)) <= 80 and any(line.startswith("warning: student_kd") for line in lines)
