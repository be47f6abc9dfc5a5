"""The command line in use: exit codes, streams, refused workdirs, and what commands write."""

import json
import os
import pty
import shutil
import subprocess
import sys

import pytest

import kd_jax
from kd_jax.cli.main import main

SMOKE = "experiments/configs/smoke.py"
TINY = ["--source.examples", "120", "--tokenizer.vocab-size", "60", "--backend", "jit"]


def test_the_report_has_the_figures_that_scripts_read(smoke_run):
    report = json.loads((smoke_run / "report/report.json").read_text())
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
    page = (smoke_run / "report/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert (smoke_run / "report/report.md").read_text().startswith("# smoke: translation, toy")
    assert report["comparison"] == {"baseline": "student_scratch", "distilled": "student_kd", "controls": []}
    assert report["dropped_as_seen_in_training"] == {"train": 0, "validation": 0, "test": 0}


def test_a_second_run_repeats_nothing(smoke_copy, root):
    manifests = [path for path in smoke_copy.rglob("manifest.json") if "report" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in manifests}
    assert main(["run", str(root / SMOKE), "--workdir", str(smoke_copy)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in manifests}


def test_generate_answers_line_by_line(smoke_run, root):
    for model in ("student_kd", "teacher"):
        command = [sys.executable, "-m", "kd_jax", "generate", "--workdir", str(smoke_run), "--model", model]
        text = "one red houses\n\n" + "two blue birds and " * 30 + "two blue birds\n"
        result = subprocess.run(
            [*command, "--beam", "2"], input=text, capture_output=True, text=True, cwd=root, check=True
        )
        assert result.stdout.count("\n") == 3
        assert result.stdout.split("\n")[1] == ""


def test_generate_prompts_at_a_terminal(smoke_run, root):
    command = [sys.executable, "-m", "kd_jax", "generate", "--workdir", str(smoke_run)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.write(ours, b"one red houses\n\x04")
    out, err = process.communicate(timeout=120)
    assert out.count(b"\n") == 1 and err.count(b"student_kd> ") == 2 and process.returncode == 0


def test_generate_executes_no_code_of_the_workdir(smoke_copy, tmp_path, monkeypatch):
    for name in ("experiment.py", "my_losses.py", "sitecustomize.py"):
        (smoke_copy / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert main(["generate", "--workdir", str(smoke_copy)]) == 0
    assert not (tmp_path / "ran").exists()


def test_a_workdir_without_a_run_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for path, message in (("nothing", "holds no run"), ("file", "expected a folder, got the file")):
        assert main(["generate", "--workdir", str(tmp_path / path)]) == 2
        assert message in capsys.readouterr().err


def test_plan_of_devices_prints_one_table_and_needs_no_workdir(root, capsys, lax_promotion):
    words = ["--devices", "8", "--kind", "tpu-v5e", "--only", "student_kd", "--buckets", "8"]
    assert main(["plan", str(root / SMOKE), *words]) == 0
    out = capsys.readouterr().out
    assert "8 x tpu-v5e" in out and "student_kd" in out and "student_scratch" not in out
    sent = [float(line.split()[-1]) for line in out.split("\n") if line.startswith("all-reduce, MiB sent")]
    assert sent and sent[0] > 0
    (limit,) = (line.split()[-1] for line in out.split("\n") if line.startswith("limit "))
    assert limit in ("compute-bound", "memory-bound", "collective-bound")
    assert "data=8" in out


@pytest.mark.parametrize(
    "words, message",
    [
        ("--devices 8 --kind h100 --backend jit", "backend: expected auto, pmap or mesh for 8 devices, got 'jit'"),
        ("--devices 8 --kind h100 --only nobody", "--only: expected one of teacher, student_scratch, "),
    ],
)
def test_plan_refuses_an_experiment_that_does_not_fit(words, message, root, capsys):
    assert main(["plan", str(root / SMOKE), *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_devices_are_simulated_before_jax_starts():
    code = (
        "import kd_jax.cli.commands, kd_jax.phases.check, jax\n"
        "from kd_jax.runtime.backends import simulate_devices\n"
        "simulate_devices(32)\n"
        "assert jax.device_count() == 32"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def modification_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "prepared", [True, pytest.param(False, marks=pytest.mark.extended)], ids=["prepared", "foreign"]
)
def test_plan_prints_both_tables_and_does_not_change_the_workdir(
    smoke_run, root, tmp_path, capsys, prepared, lax_promotion
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.txt").write_text("somebody's")
    workdir = smoke_run if prepared else tmp_path
    before = modification_times(workdir)
    # The backend is no input of a phase.
    assert main(["plan", str(root / SMOKE), "--workdir", str(workdir), "--backend", "jit"]) == 0
    captured = capsys.readouterr()
    for words in ("bytes/token", "top 32", "64 draws", " ids ", "with a top-k cache", "with the teacher in the step"):
        assert words in captured.out
    assert max(map(len, captured.out.split("\n"))) <= 80
    assert "compiling" in captured.err and modification_times(workdir) == before


def test_a_checkpoint_of_another_vocabulary_is_refused_by_its_tokens(smoke_run, root, tmp_path, capsys):
    lines = [
        "import dataclasses",
        "from kd_jax import FromCheckpoint, load_experiment",
        f"smoke = load_experiment({str(root / SMOKE)!r})",
        f"init = FromCheckpoint({str(smoke_run / 'students' / 'student_scratch')!r})",
        "recipe = dataclasses.replace(smoke.students['student_scratch'], init=init)",
        "experiment = dataclasses.replace(smoke, students={'student_kd': recipe}, comparison=None)",
    ]
    (tmp_path / "config.py").write_text("\n".join(lines))
    words = [str(tmp_path / "config.py"), "--workdir", str(tmp_path / "w"), "--source.examples", "120"]
    codes = [main([command, *words, "--tokenizer.model-type", "bpe"]) for command in ("prepare", "student")]
    assert codes == [0, 2]
    assert "vocabulary" in capsys.readouterr().err.strip().split("\n")[-1]


def test_a_workdir_of_another_config_is_refused(smoke_copy, root, capsys):
    assert main(["teacher", str(root / SMOKE), "--workdir", str(smoke_copy), "--teacher.terms.ce.weight", "2"]) == 2
    error = capsys.readouterr().err
    assert "teacher.terms.ce.weight" in error and "1.0" in error and "2.0" in error
    stored = json.loads((smoke_copy / "experiment.json").read_text())
    assert stored["fields"]["teacher"]["fields"]["terms"]["mapping"]["ce"]["fields"]["weight"] == 1.0


def test_a_full_disk_is_one_line(root, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr("kd_jax.phases.workdirs.write_experiment", full)
    assert main(["run", str(root / SMOKE), "--workdir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "No space left" in error and "run the same command again" in error and error.count("\n") == 1


def test_ctrl_c_is_exit_code_130(root, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kd_jax.phases.prepare.run", interrupt)
    assert main(["prepare", str(root / SMOKE), "--workdir", str(tmp_path)]) == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_a_foreign_folder_is_refused_and_kept(root, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.txt").write_text("somebody's")
    for command, *words in (["run"], ["prepare"], ["prepare", "--force"]):
        assert main([command, str(root / SMOKE), "--workdir", str(tmp_path), *TINY, *words]) == 2
        assert "corpus.txt" in capsys.readouterr().err
    assert (tmp_path / "data" / "corpus.txt").read_text() == "somebody's"


SCHEDULE = '{"class": "kd_jax.schedules.Schedule", "fields": {"start": 0, "end": 1, "steps": 2}}'


@pytest.mark.parametrize("text", ['{"name": "mine"}', "[1, 2]", SCHEDULE])
def test_a_foreign_experiment_json_is_not_overwritten(root, tmp_path, capsys, text):
    (tmp_path / "experiment.json").write_text(text)
    assert main(["prepare", str(root / SMOKE), "--workdir", str(tmp_path), *TINY]) == 2
    assert "experiment.json: expected an experiment as kd_jax writes it" in capsys.readouterr().err
    assert (tmp_path / "experiment.json").read_text() == text


def test_results_go_to_standard_output_and_progress_to_standard_error(smoke_copy, root, capsys):
    assert main(["report", str(root / SMOKE), "--workdir", str(smoke_copy)]) == 0
    captured = capsys.readouterr()
    assert "student_kd" in captured.out and "report.html" in captured.out and not captured.err
    assert max(map(len, captured.out.split("\n")[:-2])) <= 80


DAMAGED = [
    ("data/test.jsonl", "evaluate"),
    ("data/train.lengths.npy", "teacher"),
    ("data/tokenizer.model", "student"),
    ("evaluation/teacher.json", "report"),
    ("evaluation/student_kd.jsonl", "report"),
    ("teacher/metrics.jsonl", "report"),
    ("cache/topk/records.index.json", "student"),
    ("data/manifest.json", "teacher"),
]


@pytest.mark.parametrize("name, phase", DAMAGED)
@pytest.mark.parametrize("damage", ["edited", "cut", "deleted"])
def test_a_damaged_file_is_one_line(smoke_run, root, tmp_path, capsys, name, phase, damage):
    shutil.copytree(smoke_run, tmp_path / "w")
    path = tmp_path / "w" / name
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1", b"7", 1) if damage == "edited" and b"1" in data else data[: len(data) // 2])
    if damage == "deleted":
        path.unlink()
    words = [str(root / SMOKE), "--workdir", str(tmp_path / "w"), "--backend", "jit"]
    if phase in ("teacher", "student", "evaluate"):
        words.append("--force")
    assert main([phase, *words]) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.startswith("error: ") and path.name.split(".")[0] in last


@pytest.mark.parametrize("words", [["--help"], ["generate"]])
def test_a_closed_pipe_is_no_error(smoke_run, root, words):
    words = [*words, "--workdir", str(smoke_run)] if words == ["generate"] else words
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "kd_jax", *words]
    text = b"one red houses\n" * 200
    result = subprocess.run(command, input=text, stdout=writing, stderr=subprocess.PIPE, cwd=root)
    os.close(writing)
    assert result.returncode == 0 and b"Traceback" not in result.stderr and b"Error" not in result.stderr


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == kd_jax.__version__
