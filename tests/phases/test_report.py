"""The phase `report`: from the files of a run to report.json, report.md, report.html and the terminal."""

import dataclasses
import json
import re
import types

import pytest

from kd_jax import PseudoTargets, Recipe, Term, TopK, Training, forward_kl
from kd_jax.artifacts import manifest
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.main import main
from kd_jax.evaluation.figures import MetricFigure, metrics_to_json
from kd_jax.experiment import Evaluation
from kd_jax.phases import report as phase
from kd_jax.reporting import page
from kd_jax.reporting.report import PseudoTargetFigures
from kd_jax.reporting.verdict import duration, size
from kd_jax.tasks.translation import Translation
from tests.reporting.reports import many_students, model, report

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
    "pseudo.train_beam2": {"outputs": {"records": 9}, "seconds": 0.25, "phase": "cache"},
    "pseudo.best_beam2": {"outputs": {"examples": 8}, "seconds": 0.5, "phase": "cache"},
    "cache.best_beam2/topk": {"outputs": CACHE, "seconds": 3.0, "phase": "cache"},
    "validation_cache": {"outputs": CACHE, "seconds": 8.0, "phase": "cache"},
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
    for name in ("train_beam2", "best_beam2/cache/topk"):
        (workdir.path / "pseudo" / name).mkdir(parents=True)
    for name, count in (("train_beam2/nbest", 70), ("best_beam2/train", 30), ("best_beam2/cache/topk/records", 8)):
        (workdir.path / "pseudo" / name).write_bytes(b"x" * count)
    workdir.evaluation.begin({})
    for name, rows in TEXTS.items():
        manifest.write_lines(workdir.evaluation.path / f"{name}.jsonl", rows)
        figures = model(20.0, training={"seconds": 2.0})
        manifest.write_json(workdir.evaluation.path / f"{name}.json", figures.to_json())
    copy = metrics_to_json({"bleu": MetricFigure(1.5, (1.0, 2.0)), "chrf": MetricFigure(9.0, (8.0, 10.0))})
    manifest.write_json(workdir.evaluation.path / "baselines.json", {"copy": copy})
    workdir.evaluation.finish({}, 4.0)
    parts = {"task": Translation(), "evaluation": Evaluation(bootstrap=20), "recipes": TEXTS}
    recipe = Recipe(None, {"kd": Term(forward_kl, signal=TopK(k=8))}, Training(steps=9), targets=PseudoTargets(beam=2))
    parts["students"] = {"student": recipe}
    experiment = types.SimpleNamespace(name="mine", seed=3, comparison=None, **parts)
    return phase.build_report(experiment, workdir, MANIFESTS, TEXTS)


def test_figures_come_from_the_phases(built):
    assert built.models["teacher"].training.bytes == 4_400_000 and built.models["student"].training.seconds == 2.0
    assert built.caches["best_beam2/topk"].to_json() == CACHE | {"seconds": 3.0}
    assert built.wall_seconds == {"prepare": 1, "teacher": 5, "cache": 11.75, "student": 2, "evaluate": 4}
    assert built.pseudo_targets == {
        "train_beam2": PseudoTargetFigures(examples=9, bytes=70, seconds=0.25),
        "best_beam2": PseudoTargetFigures(examples=8, bytes=30, seconds=0.5),
    }
    assert built.teacher_signals == {"student": ("train_beam2", "best_beam2", "best_beam2/topk")}
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


def test_caches_of_an_import_are_in_its_own_time():
    """They are written within it."""
    manifests = {"import-logprobs": {"phase": "import-logprobs", "seconds": 7.0}}
    manifests |= {name: {"phase": "import-logprobs", "seconds": 3.0} for name in ("cache.topk", "validation_cache")}
    assert phase.wall_seconds(manifests) == {"import-logprobs": 7.0}


STEPS = "--teacher.training.steps 6 --students.plain.training.steps 3 --students.kd.training.steps 3"
WARMUPS = "--teacher.training.optimizer.warmup 2 --students.plain.training.optimizer.warmup 1"
SHORT = f"""
{STEPS} {WARMUPS} --students.kd.training.optimizer.warmup 1 --source.examples 80 --tokenizer.vocab-size 60 --buckets 32
--backend jit --evaluation.bootstrap 20 --evaluation.speed-texts 1 --evaluation.draft 0 --task.decoding.beam 1
"""
CONFIG = """
import dataclasses
from kd_jax import Comparison, PseudoTargets, load_experiment
smoke = load_experiment({smoke!r})
students = {{
    "plain": smoke.students["student_scratch"],
    "kd": dataclasses.replace(smoke.students["student_kd"], targets=PseudoTargets(beam=2)),
}}
experiment = dataclasses.replace(smoke, students=students, comparison=Comparison("plain", "kd"))
"""


def test_costs_are_the_sums_of_the_manifests(root, tmp_path, capsys, lax_promotion):
    """Of a whole run whose student reads pseudo-targets and a signal."""
    (tmp_path / "config.py").write_text(CONFIG.format(smoke=str(root / "experiments/configs/smoke.py")))
    run = tmp_path / "run"
    assert main(["run", str(tmp_path / "config.py"), "--workdir", str(run), *SHORT.split()]) == 0
    found = json.loads((run / "report/report.json").read_text())
    own = ("pseudo/train_beam2", "pseudo/best_beam2", "pseudo/best_beam2/cache/topk")

    def seconds(folder):
        return json.loads((run / folder / "manifest.json").read_text())["seconds"]

    def num_bytes(folder):
        return sum(path.stat().st_size for path in (run / folder).iterdir() if path.is_file())

    assert found["wall_seconds"]["cache"] == pytest.approx(sum(map(seconds, (*own, "cache/validation_topk"))))
    assert found["pseudo_targets"].keys() == {"train_beam2", "best_beam2"}
    for name, one in found["pseudo_targets"].items():
        assert one["seconds"] == seconds(f"pseudo/{name}") and one["bytes"] == num_bytes(f"pseudo/{name}")
        assert one["examples"] == 80
    assert found["teacher_signals"] == {"plain": [], "kd": ["train_beam2", "best_beam2", "best_beam2/topk"]}
    outputs = [*found["pseudo_targets"].values(), found["caches"]["best_beam2/topk"]]
    cost = f"{duration(sum(map(seconds, own)))} and {size(sum(one['bytes'] for one in outputs))}"
    page = (run / "report/report.html").read_text()
    assert f"it cost {cost} for the teacher&#39;s outputs" in page
    # The decision, the two plots, the table, then the rest.
    order = [
        'class="lead"',
        "Quality against parameters",
        "Quality against speed",
        "<table>",
        "In detail",
        "Learning curves",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert found["wall_seconds"].keys() == {"prepare", "teacher", "cache", "student", "evaluate"}
    assert f"it cost {cost}" in " ".join(capsys.readouterr().out.split())


def test_costs_of_the_smoke_run(smoke_run):
    """A student that reads one cache, and two that read nothing of the teacher."""
    found = json.loads((smoke_run / "report/report.json").read_text())
    seconds = [
        json.loads((smoke_run / "cache" / name / "manifest.json").read_text())["seconds"]
        for name in ("topk", "validation_topk")
    ]
    assert found["wall_seconds"]["cache"] == pytest.approx(sum(seconds))
    assert found["caches"]["topk"]["seconds"] == seconds[0] and found["pseudo_targets"] == {}
    assert found["teacher_signals"] == {"student_scratch": [], "student_init": [], "student_kd": ["topk"]}
    lead = (smoke_run / "report/report.md").read_text().split("\n\n")[1]
    assert (
        f"it cost {duration(seconds[0])} and {size(found['caches']['topk']['bytes'])} for the teacher's outputs" in lead
    )


def test_page_of_fifty_students_has_no_long_lists():
    one = many_students()
    texts = {"source": "s", "reference": "r", **dict.fromkeys(one.models, "t")}
    curves = {name: [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}] for name in one.models}
    document = phase.build_document(one, [texts] * 3, curves, "seed = 0")
    html, markdown = page.html(document), page.markdown(document)
    assert len(html) < 400_000 and len(markdown) < 20_000
    paragraphs = [text for text in markdown.split("\n") if not text.startswith("|")]
    assert max(len(set(re.findall(r"\bs\d+\\_(?:kd|ce)", text))) for text in paragraphs) <= 14
    samples = markdown[markdown.index("## Samples") : markdown.index("## Time")]
    assert samples.count("- teacher:") == samples.count("- s49") == samples.count("- s40") == 3
    assert len(re.findall(r"^- ", samples, re.MULTILINE)) == 3 * 5  # with source and reference
    widths = [line.count("|") for line in markdown.split("\n") if line.startswith("|")]
    assert max(widths) < 18
    rest = markdown[markdown.index("## Warnings of other models") :]
    assert "s1\\_kd: 1 of 1,068 texts are empty" in rest and rest.count("texts are empty") == 47
    assert html.count("47 other models") == 3 and "<script" not in html


def test_closing_text_fits_a_terminal():
    student = report().models["student_kd"].with_warnings(["repetitive " + "and again " * 12])
    warned = dataclasses.replace(report(), models={**report().models, "student_kd": student})
    lines = phase.closing_text(warned).split("\n")
    assert max(map(len, lines)) <= 80 and any(line.startswith("warning: student_kd") for line in lines)
