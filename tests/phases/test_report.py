"""From what a run left to the three files and the closing lines."""

import json
import types

import pytest

from kd_jax.artifacts import manifest
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import Workdir
from kd_jax.experiment import Evaluation
from kd_jax.phases import report as phase
from kd_jax.tasks.translation import Translation
from tests.reporting.reports import model, report

EXAMPLES = [{"en": f"s{i}", "fr": "un chat noir dort"} for i in range(7)]
TEXTS = {
    name: [
        {"number": i, "source": example["en"], "reference": example["fr"], "greedy": written}
        for i, example in enumerate(EXAMPLES)
    ]
    for name, written in (("teacher", "un chat noir dort"), ("student", ""))
}
PHASES = {
    "prepare": {
        "outputs": {
            "dataset": "d",
            "counts": {"train": 9, "test": 7},
            "dropped_as_seen_in_training": {"train": 0, "test": 2},
        },
        "seconds": 1.0,
    },
    "teacher": {"outputs": {}, "seconds": 5.0},
    "cache.topk": {"outputs": {"target_tokens": 2, "bytes": 8, "bytes_per_target_token": 4.0}, "seconds": 3.0},
    "student.student": {"outputs": {}, "seconds": 2.0},
    "evaluate": {"outputs": {}, "seconds": 4.0, "versions": {"jax": "1"}},
}


@pytest.fixture
def figures(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.data.begin({})
    manifest.write_lines(workdir.data.path / "test.jsonl", EXAMPLES)
    workdir.data.finish({}, 1.0)
    workdir.evaluation.begin({})
    for name, rows in TEXTS.items():
        manifest.write_lines(workdir.evaluation.path / f"{name}.jsonl", rows)
        manifest.write_json(workdir.evaluation.path / f"{name}.json", model(20.0, seconds=2.0))
    manifest.write_json(workdir.evaluation.path / "baselines.json", {"copy": {"bleu": 1.5, "bleu_ci": [1.0, 2.0]}})
    workdir.evaluation.finish({}, 4.0)
    parts = {"task": Translation(), "evaluation": Evaluation(bootstrap=20), "recipes": TEXTS}
    experiment = types.SimpleNamespace(name="mine", seed=3, comparison=None, **parts)
    return phase.read(experiment, workdir, PHASES, TEXTS)


def test_costs_are_read_from_the_phases(figures):
    assert figures["models"]["teacher"]["bytes"] == 4_400_000 and figures["models"]["student"]["seconds"] == 2.0
    assert figures["caches"]["topk"] == PHASES["cache.topk"]["outputs"] | {"seconds": 3.0}
    assert figures["wall_seconds"] == {"prepare": 1, "teacher": 5, "cache": 3, "student": 2, "evaluate": 4}
    assert figures["comparison"] is None and figures["gap_recovered"] is None
    headline = figures["headline"]
    assert headline.pop("signature").startswith("nrefs:1|case:mixed")
    assert headline == {"name": "bleu", "label": "BLEU", "higher_is_better": True, "digits": 2}
    assert figures["baselines"]["copy"]["bleu"] == 1.5
    assert list(figures["differences"]) == ["teacher"]  # of the only student
    assert figures["differences"]["teacher"]["mean"] == pytest.approx(-100)  # nothing against the reference itself


def test_rubbish_is_warned_of_in_files_and_terminal(figures, tmp_path):
    document = phase.document(figures, phase.samples(TEXTS, "greedy", 2), {}, "seed = 3")
    phase.write(Folder(tmp_path, "report"), figures, document)
    for text in ((tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text(), phase.closing(figures)):
        assert "student: 7 of 7 texts are empty" in text
    assert json.loads((tmp_path / "report.json").read_text())["models"]["teacher"]["warnings"] == []


def test_a_shrunken_test_split_is_told_in_both_pages(figures, tmp_path):
    phase.write(Folder(tmp_path, "report"), figures, phase.document(figures, [], {}, ""))
    for file in ("report.html", "report.md"):
        assert "7 (2 more were left out" in (tmp_path / file).read_text()


@pytest.mark.parametrize("count, rows", [(2, [0, 3]), (7, range(7)), (20, range(7))])
def test_samples_are_spread_over_the_split(count, rows):
    chosen = phase.samples(TEXTS, "greedy", count)
    assert [sample["source"] for sample in chosen] == [f"s{i}" for i in rows]
    assert list(chosen[0]) == ["source", "reference", "teacher", "student"]


def test_the_closing_lines_fit_a_terminal():
    figures = report()
    figures["models"]["student_kd"]["warnings"] = ["repeats itself " + "and again " * 12]
    lines = phase.closing(figures).split("\n")
    assert max(map(len, lines)) <= 80 and any(line.startswith("warning: student_kd") for line in lines)
