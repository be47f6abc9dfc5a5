"""The command `ablate`: runs of all seeds, and their common result."""

import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from kd_jax.cli.main import main
from kd_jax.phases import ablate
from kd_jax.reporting import page
from tests.reporting.ablations import ablation

CONFIG = """
import dataclasses
from kd_jax import load_experiment
smoke = load_experiment({smoke!r})
experiment = dataclasses.replace(smoke, students={{"kd": smoke.students["student_kd"]}}, comparison=None)
"""
SHORT = """
--source.examples 80 --tokenizer.vocab-size 60 --buckets 32 --backend jit --evaluation.cached-k 0
--evaluation.bootstrap 20 --evaluation.speed-texts 1 --task.decoding.beam 1 --teacher.training.steps 6
--teacher.training.optimizer.warmup 2 --students.kd.training.steps 3 --students.kd.training.optimizer.warmup 1
"""


@pytest.fixture(scope="module")
def words(root, tmp_path_factory):
    """The command, but for its seeds and overrides."""
    folder = tmp_path_factory.mktemp("ablate")
    (folder / "config.py").write_text(CONFIG.format(smoke=str(root / "experiments/configs/smoke.py")))
    return ["ablate", str(folder / "config.py"), "--workdir", str(folder / "work")]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory, lax_promotion):
    """Its workdir, with two seeds and all metrics."""
    assert main([*words, "--seeds", "0", "1", "--metric", "all", *SHORT.split()]) == 0
    return tmp_path_factory.getbasetemp() / words[3]


def test_every_seed_has_a_run_with_the_controls(finished):
    for seed in (0, 1):
        folder = finished / f"seed{seed}"
        assert json.loads((folder / "experiment.json").read_text())["fields"]["seed"] == seed
        assert {path.name for path in (folder / "students").iterdir()} == {"kd", "control_ce", "control_smoothed"}
        assert (folder / "report/report.html").exists()


def test_differences_equal_those_computed_from_the_texts(finished):
    """The mean over the seeds of chrF's difference, from the files of texts by sacreBLEU."""
    result = json.loads((finished / "ablation/ablation.json").read_text())
    assert result["distilled"] == "kd" and result["controls"] == ["control_ce", "control_smoothed"]

    def chrf(seed, name):
        rows = [json.loads(row) for row in (finished / f"seed{seed}/evaluation/{name}.jsonl").open()]
        return CHRF().corpus_score([row["greedy"] for row in rows], [[row["reference"] for row in rows]]).score

    for name in ("kd", "control_ce"):
        expected = np.mean([chrf(seed, name) - chrf(seed, "control_smoothed") for seed in (0, 1)])
        assert result["differences"]["chrf"]["control_smoothed"][name]["mean"] == pytest.approx(expected)
    assert result["models"]["kd"]["chrf"] == pytest.approx([chrf(seed, "kd") for seed in (0, 1)])
    assert "copy" in result["baselines"] and result["examples"] == 10


def test_finished_ablation_is_only_read(finished, words, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("seed*/**/checkpoints/**/*")}
    assert before and main([*words, "--seeds", "1", "0", *SHORT.split()]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    said = capsys.readouterr()
    assert "seed 1 (1 of 2)" in said.err and "already trained" in said.err
    assert "ablation/report.html" in said.out.splitlines()[-1]


def test_failing_seed_is_named(finished, words, capsys):
    shutil.rmtree(finished / "seed1/evaluation")
    path = finished / "seed1/students/kd/manifest.json"
    whole = path.read_text()
    path.write_text(whole.replace("1", "7"))
    assert main([*words, "--seeds", "0", "1", *SHORT.split()]) == 2
    assert capsys.readouterr().err.strip().split("\n")[-1].startswith("error: seed 1: ")
    path.write_text(whole)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "missing --seeds"),
        (["--seeds"], "--seeds: expected integers in [0, 4294967295], got none"),
        (["--seeds", "0", "1", "0"], "--seeds: expected each seed once, got 0 1 0"),
        (["--seeds", "1.5"], "--seeds: expected integers, got '1.5'"),
        (["--seeds", "-1"], "--seeds: expected integers in [0, 4294967295], got -1"),
        (["--seeds", "0", "--seed", "3"], "--seed: expected --seeds in its place"),
        (["--seeds", "0", "--metric", "rouge_l"], "--metric: expected one of bleu, chrf (translation) or all"),
        (["--seeds", "0", "--teacher.training.step", "3"], "--teacher.training.steps"),
        (["--seeds", "0", "--only", "kd"], "--only: an option of student, plan, sample, not of ablate"),
    ],
)
def test_invalid_options_are_one_line_and_leave_nothing(words, options, message, tmp_path, capsys):
    assert main([*words[:2], "--workdir", str(tmp_path / "w"), *options]) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.startswith("error: ") and message in last and not (tmp_path / "w").exists()


def test_config_without_students_is_refused(root, tmp_path, capsys):
    lines = [
        "import dataclasses",
        "from kd_jax import load_experiment",
        f"smoke = load_experiment({str(root / 'experiments/configs/smoke.py')!r})",
    ]
    lines.append("experiment = dataclasses.replace(smoke, students={}, comparison=None)")
    (tmp_path / "config.py").write_text("\n".join(lines))
    assert main(["ablate", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "w"), "--seeds", "0"]) == 2
    assert "students: expected at least the distilled student" in capsys.readouterr().err


def test_page_has_a_table_and_a_plot_for_each_control():
    document = ablate.build_document(ablation(), "seed = 0")
    html, markdown = page.html(document), page.markdown(document)
    for text in (html, markdown.replace("\\_", "_")):
        assert "BLEU against control_ce" in text and "+0.3 to +1.5" in text and "Over 3 seeds" in text
    assert html.count("<svg") == 4 and "<script" not in html and "seed = 0" in html  # two metrics, two controls
    identifiers = [
        {node.attrib["id"] for node in ElementTree.fromstring(f"<svg{part}").iter() if "id" in node.attrib}
        for part in (piece.split("</svg>")[0] + "</svg>" for piece in html.split("<svg")[1:])
    ]
    assert sum(map(len, identifiers)) == len(set().union(*identifiers))


def test_closing_text_fits_a_terminal():
    lines = ablate.closing_text(ablation(warnings=("seed 0, kd: repetitive",) * 3)).split("\n")
    assert max(map(len, lines)) <= 80 and any("Warnings of single seeds: 3" in line for line in lines)
