"""The phase `report`: from the files of a run to report.json, report.md, report.html and the terminal."""

import dataclasses
import json
import re
import shutil
import types

import pytest

from kd_jax import Online, OnPolicy, PseudoTargets, Recipe, Rounds, Term, TopK, Training, forward_kl
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


def own_line(n, **changed):
    return json.dumps({"prompt": f"p{n}", "text": f"t{n}", "ended": n % 2 == 0, "ids": [n]} | changed)


def write_own_texts(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines))


@pytest.fixture
def own_run(tmp_path):
    """A run whose students wrote texts while they trained, and the experiment's part that a report reads."""
    recipe = Recipe(None, {"kd": Term(forward_kl, signal=Online())}, Training(steps=9))
    targets = {"plain": None, "live": OnPolicy(), "none": OnPolicy(share=0.0), "rounds": Rounds(count=4)}
    students = {name: dataclasses.replace(recipe, targets=one) for name, one in targets.items()}
    workdir = Workdir(tmp_path)
    for step in (1, 23, 144):
        lines = [own_line(step + n) for n in range(5)]
        write_own_texts(workdir.model("live").path / f"own_texts/{step:08d}.jsonl", *lines)
    for number in range(3):  # the first round has no own texts, and the last one's file is missing
        lines = [own_line(n, own=number > 0 and n % 2 == 1) for n in range(10 * number, 10 * number + 9)]
        write_own_texts(workdir.round("rounds", number).path / "texts.jsonl", *lines)
    return types.SimpleNamespace(students=students), workdir


def shown(experiment, workdir, names=("plain", "live", "none", "rounds")):
    found = phase.select_own_texts(experiment, workdir, names)
    return {heading: [(one.prompt, one.text, one.ended) for one in texts] for heading, texts in found.items()}


def expected_texts(*numbers):
    return [(f"p{n}", f"t{n}", n % 2 == 0) for n in numbers]


def test_texts_of_the_first_and_the_last_file_are_shown(own_run):
    """At most three each, with the step or the round; of a round's file the own ones alone."""
    assert shown(*own_run) == {
        "live, step 1": expected_texts(1, 2, 3),
        "live, step 144": expected_texts(144, 145, 146),
        "rounds, round 2": expected_texts(11, 13, 15),
        "rounds, round 3": expected_texts(21, 23, 25),
    }
    assert list(shown(*own_run, names=["rounds"])) == ["rounds, round 2", "rounds, round 3"]
    one_file = own_run[1].model("live").path / "own_texts"
    for name in ("00000001", "00000144"):
        (one_file / f"{name}.jsonl").unlink()
    assert list(shown(*own_run, names=["live"])) == ["live, step 23"]


def test_missing_and_damaged_files_of_own_texts_are_skipped(own_run):
    experiment, workdir = own_run
    folder = workdir.model("live").path / "own_texts"
    strange = ["[" * 100_000, "[]", "1" * 5000, "{}", own_line(3, text=7), own_line(3, prompt=None), b"\xff\xfe\n", ""]
    long = own_line(3, text="x" * 200_000)
    write_own_texts(
        folder / "00000001.jsonl", *strange, long, own_line(8), own_line(9, ended="yes"), b'{"prompt": "cut'
    )
    (folder / "00000144.jsonl").write_bytes(b"")
    (folder / "00000200.jsonl").mkdir()
    write_own_texts(folder / "notes.jsonl", own_line(1))
    assert shown(experiment, workdir, ["live"]) == {
        "live, step 1": [("p8", "t8", True), ("p9", "t9", False)],
        "live, step 23": expected_texts(23, 24, 25),
    }
    for name in ("live", "rounds"):
        shutil.rmtree(workdir.model(name).path)
    assert shown(experiment, workdir) == {}


@pytest.mark.parametrize("has_texts", [True, False])
def test_own_texts_have_a_section_if_there_are_any(built, own_run, has_texts):
    texts = phase.select_own_texts(*own_run, ["live"]) if has_texts else {}
    document = phase.build_document(built, [], {}, "seed = 3", texts)
    for written in (page.markdown(document), page.html(document)):
        assert ("Texts that the students wrote while they trained" in written) == has_texts
        assert ("live, step 144" in written) == has_texts


def test_signals_of_rounds_are_no_caches_of_the_run(tmp_path):
    """A cache of the same signal is another student's: its seconds and bytes are no cost of rounds."""
    terms = {"kd": Term(forward_kl, signal=TopK(k=8)), "ce": Term(forward_kl)}
    cached = Recipe(None, terms, Training(steps=9))
    students = {"cached": cached, "rounds": dataclasses.replace(cached, targets=Rounds())}
    experiment = types.SimpleNamespace(students=students)
    signals = phase.teacher_signals(experiment, Workdir(tmp_path), ["train"])
    assert signals == {"cached": ("topk",), "rounds": ("TopK",)}


OWN_CONFIG = """
import dataclasses
from kd_jax import Online, OnPolicy, Rounds, Term, forward_kl, load_experiment
smoke = load_experiment({smoke!r})
kd = smoke.students["student_kd"]
students = {{
    "plain": smoke.students["student_init"],
    "live": dataclasses.replace(kd, targets=OnPolicy(pool=2), terms={{"kd": Term(forward_kl, signal=Online())}}),
    "kd": dataclasses.replace(kd, targets=Rounds(count=3)),
}}
experiment = dataclasses.replace(smoke, students=students, comparison=None)
"""


@pytest.mark.extended
def test_a_run_reports_texts_and_time_of_students_that_write_while_they_train(root, tmp_path, lax_promotion):
    (tmp_path / "config.py").write_text(OWN_CONFIG.format(smoke=str(root / "experiments/configs/smoke.py")))
    run, words = tmp_path / "run", [*SHORT.split(), "--students.live.training.steps", "3"]
    words += ["--students.live.training.optimizer.warmup", "1"]
    assert main(["run", str(tmp_path / "config.py"), "--workdir", str(run), *words]) == 0
    found = json.loads((run / "report/report.json").read_text())
    for name in ("live", "kd"):
        manifest_of = json.loads((run / "students" / name / "manifest.json").read_text())
        seconds = manifest_of["outputs"]["sampling_seconds"]
        assert found["models"][name]["sampling_seconds"] == seconds < found["models"][name]["seconds"]
        assert found["models"][name]["seconds"] == manifest_of["seconds"]
    assert "sampling_seconds" not in found["models"]["plain"]
    assert found["teacher_signals"] == {"plain": [], "live": ["Online"], "kd": ["TopK"]} and found["caches"] == {}
    written = (run / "report/report.md").read_text()
    headings = re.findall("^### (.*, .*)$", written, re.MULTILINE)
    assert headings == ["live, step 1", "live, step 3", "kd, round 1", "kd, round 3"]
    assert "| sampling time |" in written
    first = json.loads((run / "students/live/own_texts/00000001.jsonl").read_text().splitlines()[0])
    assert f"- prompt: {first['prompt']}\n" in written
    html = (run / "report/report.html").read_text()
    assert "KL to the teacher on a student&#39;s own texts" in html and "<h3>kd, round 3</h3>" in html


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
