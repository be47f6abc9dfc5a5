"""The command line: what a person types, and what a bad line answers."""

import dataclasses
import json
import os
import pty
import shutil
import subprocess
import sys

import pytest

import kd_jax
from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.main import main
from kd_jax.cli.overrides import apply_overrides
from kd_jax.config import load_experiment
from kd_jax.errors import KdError
from kd_jax.phases import PHASES
from kd_jax.phases.workdirs import read_experiment

SMOKE = "experiments/configs/smoke.py"
SHORT = (
    "--source.examples 120 --tokenizer.vocab-size 60 --teacher.training.steps 8 --teacher.training.eval-every 4 "
    "--teacher.training.optimizer.warmup 2 --backend jit --evaluation.bootstrap 10 --evaluation.speed-texts 1 "
    + " ".join(
        f"--students.{name}.training.steps 4 --students.{name}.training.optimizer.warmup 2"
        for name in ("student_scratch", "student_init", "student_kd")
    )
).split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, root, lax_promotion):
    """A workdir of a whole run through the command line."""
    workdir = tmp_path_factory.mktemp("run") / "work"
    assert main(["run", str(root / SMOKE), "--workdir", str(workdir), *SHORT]) == 0
    return workdir


def test_from_python_a_run_is_the_command_s(finished, root, tmp_path, lax_promotion):
    """What the command finished is skipped, since its inputs are the same, and its report is returned."""
    experiment, before = apply_overrides(str(root / SMOKE), SHORT), (finished / "teacher/manifest.json").read_bytes()
    models = json.loads((finished / "report/report.json").read_text())["models"]
    report = kd_jax.run(experiment, finished)
    assert report == json.loads((finished / "report/report.json").read_text()) and report["models"] == models
    assert (finished / "teacher/manifest.json").read_bytes() == before
    with pytest.raises(KdError, match="seed"):
        kd_jax.run(dataclasses.replace(experiment, seed=1), finished)
    assert read_experiment(Workdir(finished)).seed == 0
    with Workdir(finished).lock(), pytest.raises(KdError, match="another kd_jax works there"):
        kd_jax.run(experiment, finished)
    (tmp_path / "file").write_text("")
    with pytest.raises(KdError, match="not a folder"):
        kd_jax.run(experiment, str(tmp_path / "file"))


def test_a_run_is_all_phases_in_order(monkeypatch, root, tmp_path):
    experiment, called = load_experiment(root / SMOKE), []
    for phase in PHASES:
        monkeypatch.setattr(f"kd_jax.phases.{phase}.run", lambda *_, phase=phase, **__: called.append(phase))
    assert main(["run", str(root / SMOKE), "--workdir", str(tmp_path / "a")]) == 0
    with pytest.raises(KdError, match="report"):  # which nobody wrote
        kd_jax.run(experiment, tmp_path / "b")
    assert called == 2 * ["prepare", "teacher", "cache", "student", "evaluate", "report"]


def test_the_report_has_what_scripts_rely_on(finished):
    report = json.loads((finished / "report/report.json").read_text())
    assert {"task", "dataset", "seed", "wall_seconds", "models", "gap_recovered"} <= report.keys()
    assert list(report["models"]) == ["teacher", "student_scratch", "student_init", "student_kd"]
    assert {"prepare", "teacher", "cache", "student", "evaluate"} <= report["wall_seconds"].keys()
    for model in report["models"].values():
        for key in (
            "parameters",
            "bleu",
            "bleu_ci",
            "chrf",
            "bleu_beam",
            "cross_entropy",
            "kl_to_teacher",
            "agreement",
            "decode_tokens_per_second",
            "train_tokens_per_second",
        ):
            assert key in model
    assert report["models"]["teacher"]["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert report["models"]["teacher"]["agreement"] == 1
    assert [name for name, model in report["models"].items() if "draft_speedup" in model] == ["student_kd"]
    page = (finished / "report/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert (finished / "report/report.md").read_text().startswith("# smoke: translation, toy")
    assert report["comparison"] == {"baseline": "student_scratch", "distilled": "student_kd", "controls": []}
    assert report["dropped_as_seen_in_training"] == {"train": 0, "validation": 0, "test": 0}


def test_a_second_run_does_nothing_again(finished, root):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json") if "report" not in path.parts}
    assert main(["run", str(root / SMOKE), "--workdir", str(finished), *SHORT]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_generate_answers_line_by_line(finished, root):
    for model in ("student_kd", "teacher"):
        command = [
            sys.executable,
            "-m",
            "kd_jax",
            "generate",
            "--workdir",
            str(finished),
            "--model",
            model,
            "--beam",
            "2",
        ]
        text = "one red houses\n\n" + "two blue birds and " * 30 + "two blue birds\n"
        result = subprocess.run(command, input=text, capture_output=True, text=True, cwd=root, check=True)
        assert result.stdout.count("\n") == 3
        assert result.stdout.split("\n")[1] == ""


def test_generate_refuses_what_it_does_not_know(finished, capsys):
    assert main(["generate", "--workdir", str(finished), "--model", "studnt_kd"]) == 2
    assert "did you mean student_kd" in capsys.readouterr().err
    assert main(["generate", "--workdir", str(finished / "nothing")]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize("value", [True, False])
def test_a_field_that_is_true_or_false_takes_a_word(root, value):
    assert (
        apply_overrides(str(root / SMOKE), ["--teacher.training.packed", str(value)]).teacher.training.packed == value
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["--teacher.training.step", "5"], "--teacher.training.steps"),
        (["--seed", "x"], "--seed"),
        (["--source.examples"], "--source.examples"),
        (["--teacher.model.norm", "batch"], "norm"),
        (["--buckets", "20", "12"], "ascending"),
        (["--teacher.model.heads", "3"], "heads"),
        (["--tokenizer.vocab-size", "5000"], "tokenizer.vocab_size"),
        (["--students.student_kd.terms.kd.signal.k", "1000"], "signal.k"),
        (["--teacher.training.optimizer.warmup", "240"], "warmup"),
        (["--backend", "tpu"], "backend"),
        (["--evaluation.bootstrap", "1"], "evaluation.bootstrap"),
        (["--evaluation.split", "train"], "evaluation.split"),
        (["--students.student_kd.terms.kd.signal.tail", "drop"], "tail"),
        (["--students.student_kd.terms.kd.weight", "0"], "student_kd: terms.kd.weight"),
        (["--teacher.model.soft-cap", "-1"], "soft_cap"),
        (["--writer", "0/2"], "--writer"),
        (["--profile", "0:3"], "--profile 0:3"),
        (["--processes", "0"], "--processes 0: wanted a number of processes"),
        (["--processes", "two"], "--processes two: wanted a number of processes"),
        (["--profile", "5"], "FIRST:LAST"),
        (["--beam-runner", "DirectRunner", "--processes", "2"], "--processes: who does the work is Beam's"),
        (["--beam-options", "x"], "--beam-options: goes with --beam-runner"),
        (["--patience", "9"], "--patience: goes with --host"),
        (["--metrics", "paper"], "--metrics paper: wanted tensorboard, wandb, mlflow"),
        (["--only", "student_kd"], "--only"),
    ],
)
def test_bad_fields_are_one_line_and_exit_code_2(words, message, root, tmp_path, capsys):
    assert main(["run", str(root / SMOKE), "--workdir", str(tmp_path / "w"), *words]) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.startswith("error: ") and message in last


@pytest.mark.parametrize(
    "words, message",
    [
        (["nonsense"], "unknown command 'nonsense'; wanted run, plan, prepare"),
        (["run", SMOKE, "--workdir", "w", "--seeds", "0"], "--seeds"),
        (
            ["run", SMOKE, "--workdir", "s3://a/w", "--host", "0/2"],
            "--host: s3://a/w is in s3://",
        ),
        (["ablate", SMOKE, "--seeds", "0"], "--workdir: missing"),
        (["ablate"], "config"),
        (["new"], "config"),
        (["run", "no/such.py", "--workdir", "w"], "no such file"),
        (["run", SMOKE], "--workdir: missing"),
        (["run"], "config"),
        (["generate"], "--workdir: missing"),
        (["plan", SMOKE, "--force"], "--force: plan keeps nothing"),
        (["plan", SMOKE, "--devices", "8"], "--kind: expected one of tpu-v5e, tpu-v5p, tpu-v6e, h100, got ''"),
        (["plan", SMOKE, "--kind", "h100"], "--devices: None; wanted how many"),
        (
            ["plan", SMOKE, "--devices", "8", "--kind", "h100", "--backend", "jit"],
            "backend: expected auto, pmap or mesh for 8 devices, got 'jit'",
        ),
        (["plan", SMOKE, "--devices", "8", "--kind", "h100", "--only", "nobody"], "--only nobody: no such model"),
        (["teacher", SMOKE, "--beam-runner", "DirectRunner"], "--beam-runner: goes with the commands run and prepare"),
        (["plan", SMOKE, "--metrics", "wandb"], "--metrics: goes with the commands run"),
        (
            ["run", SMOKE, "--workdir", "w", "--only", "student_kd"],
            "--only: goes with the commands student and plan --devices alone",
        ),
        (["shrink", SMOKE, "--force"], "--force: shrink measures anew"),
        (["shrink", SMOKE], "--workdir: missing"),
    ],
)
def test_bad_commands(words, message, capsys, root, monkeypatch):
    monkeypatch.chdir(root)
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "term, message",
    [
        ("Term(reverse_kl, signal=Sampled())", "terms.kd.loss: reverse_kl"),
        ("Term(forward_kl, signal=TopK(k=65))", "terms.kd.signal.k: 65"),
        (
            "Term(mse, signal=HiddenStates(layers=((1, 0),)))",
            "terms.kd.signal.layers: expected a layer of the student's decoder, 0 to 0, got 1",
        ),
        ("Term(forward_kl, signal=AttentionRelations(layers=((0, 0),), heads=3))", "terms.kd.signal.heads: 3"),
    ],
)
def test_objectives_that_cannot_be_are_refused_when_the_run_starts(term, message, root, tmp_path, capsys):
    lines = [
        "import dataclasses",
        "from kd_jax import config",
        "from kd_jax.losses.divergence import forward_kl, reverse_kl",
        "from kd_jax.losses.features import mse",
        "from kd_jax.objective.terms import Term",
        "from kd_jax.signals.features import *",
        "from kd_jax.signals.sampled import Sampled",
        "from kd_jax.signals.topk import TopK",
        f"smoke = config.load_experiment({str(root / SMOKE)!r})",
        f"recipe = dataclasses.replace(smoke.students['student_kd'], terms={{'kd': {term}}})",
        "experiment = dataclasses.replace(smoke, students={'it': recipe}, comparison=None)",
    ]
    (tmp_path / "config.py").write_text("\n".join(lines))
    assert main(["run", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "w")]) == 2
    assert message in capsys.readouterr().err.strip().split("\n")[-1]
    assert not (tmp_path / "w").exists()


def test_plan_of_devices_prints_one_table_and_needs_no_workdir(root, capsys, lax_promotion):
    words = ["--devices", "8", "--kind", "tpu-v5e", "--only", "student_kd", "--buckets", "8"]
    assert main(["plan", str(root / SMOKE), *words]) == 0
    said = capsys.readouterr().out
    assert "8 x tpu-v5e" in said and "student_kd" in said and "student_scratch" not in said
    sent = [float(line.split()[-1]) for line in said.split("\n") if line.startswith("all-reduce, MiB sent")]
    assert sent and sent[0] > 0
    (limit,) = (line.split()[-1] for line in said.split("\n") if line.startswith("limit "))
    assert limit in ("compute-bound", "memory-bound", "collective-bound")
    assert "memory and its traffic are estimates" in said and "data=8" in said


def test_as_many_devices_as_are_asked_for_before_jax_begins():
    code = (
        "import kd_jax.cli.commands, kd_jax.phases.check, jax\n"
        "from kd_jax.runtime.backends import simulate_devices\n"
        "simulate_devices(32)\n"
        "assert jax.device_count() == 32"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "foreign"])
def test_plan_prints_both_tables_and_leaves_the_workdir_as_it_is(finished, root, tmp_path, capsys, prepared):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.txt").write_text("somebody's")
    workdir = finished if prepared else tmp_path
    before = contents(workdir)
    assert main(["plan", str(root / SMOKE), "--workdir", str(workdir), *SHORT]) == 0
    said = capsys.readouterr()
    for words in (
        "bytes/token",
        "top 32",
        "64 draws",
        " ids ",
        "with a top-k cache",
        "with the teacher in the step",
    ):
        assert words in said.out
    assert max(map(len, said.out.split("\n"))) <= 80
    assert "compiling" in said.err and contents(workdir) == before


def test_writers_are_numbered(finished, root, capsys):
    assert main(["cache", str(root / SMOKE), "--workdir", str(finished), *SHORT, "--writer", "2/2"]) == 2
    assert "wanted NUMBER/WRITERS" in capsys.readouterr().err


def test_a_student_of_another_vocabulary_is_refused_by_its_token_strings(finished, root, tmp_path, capsys):
    words = ["--source.examples", "120", "--tokenizer.vocab-size", "60", "--tokenizer.model-type", "bpe"]
    lines = [
        "import dataclasses",
        "from kd_jax import config",
        "from kd_jax.students.init import FromCheckpoint",
        f"smoke = config.load_experiment({str(root / SMOKE)!r})",
        f"start = FromCheckpoint({str(finished / 'students' / 'student_scratch')!r})",
        "recipe = dataclasses.replace(smoke.students['student_scratch'], init=start)",
        "experiment = dataclasses.replace(smoke, students={'student_kd': recipe}, comparison=None)",
    ]
    (tmp_path / "config.py").write_text("\n".join(lines))
    for command in ("prepare", "student"):
        code = main([command, str(tmp_path / "config.py"), "--workdir", str(tmp_path / "w"), *words])
    assert code == 2
    assert "another vocabulary (token " in capsys.readouterr().err


def test_a_workdir_of_another_config_is_refused(finished, root, capsys):
    assert (
        main(["teacher", str(root / SMOKE), "--workdir", str(finished), *SHORT, "--teacher.terms.ce.weight", "2"]) == 2
    )
    assert "teacher.terms.ce.weight = 1.0, now 2.0" in capsys.readouterr().err
    kept = json.loads((finished / "experiment.json").read_text())
    assert kept["fields"]["teacher"]["fields"]["terms"]["mapping"]["ce"]["fields"]["weight"] == 1.0


def test_no_space_left_is_told_in_one_line(root, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr("kd_jax.phases.workdirs.write_experiment", full)
    assert main(["run", str(root / SMOKE), "--workdir", str(tmp_path)]) == 2
    assert "No space left" in capsys.readouterr().err


def test_overrides_reach_every_part(root):
    words = """
    --teacher.terms.ce.options.label-smoothing 0.2 --students.student_kd.terms.kd.signal.k 5 --buckets 8 40
    --students.student_init.init.decoder 1 --tokenizer.model-type bpe
    """
    experiment = apply_overrides(str(root / SMOKE), words.split())
    assert experiment.teacher.terms["ce"].options["label_smoothing"] == 0.2
    assert experiment.students["student_kd"].terms["kd"].signal.k == 5
    assert experiment.students["student_init"].init.decoder == (1,)
    assert experiment.buckets == (8, 40) and experiment.tokenizer.model_type == "bpe"
    with pytest.raises(KdError):
        apply_overrides(str(root / "kd_jax/types.py"), [])


def test_a_corpus_in_data_is_refused_not_emptied(root, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.txt").write_text("somebody's")
    for words in (["run"], ["prepare"], ["prepare", "--force"]):
        assert main([words[0], str(root / SMOKE), "--workdir", str(tmp_path), *SHORT, *words[1:]]) == 2
        assert "files that kd_jax did not make (corpus.txt)" in capsys.readouterr().err
    assert (tmp_path / "data" / "corpus.txt").read_text() == "somebody's"


def test_results_go_to_standard_output_and_progress_to_standard_error(finished, root, capsys):
    assert main(["report", str(root / SMOKE), "--workdir", str(finished), *SHORT]) == 0
    said = capsys.readouterr()
    assert "student_kd" in said.out and "report.html" in said.out and not said.err
    assert max(map(len, said.out.split("\n")[:-2])) <= 80


@pytest.mark.parametrize(
    "name, phase",
    [
        ("data/test.jsonl", "evaluate"),
        ("data/train.lengths.npy", "teacher"),
        ("data/tokenizer.model", "student"),
        ("evaluation/teacher.json", "report"),
        ("evaluation/student_kd.jsonl", "report"),
        ("teacher/metrics.jsonl", "report"),
        ("cache/topk/records.index.json", "student"),
        ("data/manifest.json", "teacher"),
    ],
)
@pytest.mark.parametrize("damage", ["edited", "cut", "deleted"])
def test_what_was_edited_cut_or_deleted_is_one_line(finished, root, tmp_path, capsys, name, phase, damage):
    shutil.copytree(finished, tmp_path / "w")
    path = tmp_path / "w" / name
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1", b"7", 1) if damage == "edited" and b"1" in data else data[: len(data) // 2])
    if damage == "deleted":
        path.unlink()
    words = [str(root / SMOKE), "--workdir", str(tmp_path / "w"), *SHORT]
    if phase in ("teacher", "student", "evaluate"):
        words.append("--force")
    assert main([phase, *words]) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.startswith("error: ") and path.name.split(".")[0] in last


def test_generate_executes_nothing_of_the_workdir(finished, root, tmp_path, capsys, monkeypatch):
    """Nothing but data is read: code put beside it is never run."""
    shutil.copytree(finished, tmp_path / "w")
    for name in ("experiment.py", "my_losses.py", "sitecustomize.py"):
        (tmp_path / "w" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert main(["generate", "--workdir", str(tmp_path / "w")]) == 0
    assert not (tmp_path / "ran").exists()


def test_a_person_at_a_terminal_is_asked(finished, root):
    command = [sys.executable, "-m", "kd_jax", "generate", "--workdir", str(finished)]
    ours, theirs = pty.openpty()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, stdin=theirs, cwd=root, **pipes)
    os.write(ours, b"one red houses\n\x04")
    out, err = process.communicate(timeout=120)
    assert out.count(b"\n") == 1 and err.count(b"student_kd> ") == 2 and process.returncode == 0


@pytest.mark.parametrize("words", [["--help"], ["ablate", "--help"], ["new", "mine.py", "--help"], ["generate", "-h"]])
def test_help_shows_every_command(words, capsys):
    assert main(words) == 0
    said = capsys.readouterr().out
    for command in ("run CONFIG", "new CONFIG", "plan CONFIG", "shrink CONFIG", "ablate CONFIG", "generate --workdir"):
        assert f"kd-jax {command}" in said
    assert max(map(len, said.split("\n"))) <= 120


@pytest.mark.parametrize("words", [["--help"], ["generate"]])
def test_a_reader_that_has_read_enough_is_no_error(finished, root, words):
    words = [*words, "--workdir", str(finished)] if words == ["generate"] else words
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "kd_jax", *words]
    text = b"one red houses\n" * 200
    result = subprocess.run(command, input=text, stdout=writing, stderr=subprocess.PIPE, cwd=root)
    os.close(writing)
    assert result.returncode == 0 and b"Traceback" not in result.stderr and b"Error" not in result.stderr


def test_the_version_is_said(root, capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == kd_jax.__version__


SCHEDULE = '{"class": "kd_jax.schedules.Schedule", "fields": {"start": 0, "end": 1, "steps": 2}}'


@pytest.mark.parametrize("text", ['{"name": "mine"}', "[1, 2]", SCHEDULE])
def test_somebody_elses_experiment_json_is_not_written_over(root, tmp_path, capsys, text):
    (tmp_path / "experiment.json").write_text(text)
    assert main(["prepare", str(root / SMOKE), "--workdir", str(tmp_path), *SHORT]) == 2
    assert "not as kd_jax writes it; move it away" in capsys.readouterr().err
    assert (tmp_path / "experiment.json").read_text() == text
