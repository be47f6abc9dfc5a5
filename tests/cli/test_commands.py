"""The commands' options: help, defaults, and options that do not fit."""

import dataclasses
import subprocess
import sys
import time

import pytest

from kd_jax.cli.commands import COMMANDS, Cache, HostOptions, MonitoringOptions, parse_share
from kd_jax.cli.main import main, option_names
from kd_jax.errors import KdError

SMOKE = "experiments/configs/smoke.py"
HOSTS = "--host --coordinator --patience --wait"
WORKERS = "--processes --beam-runner --beam-options"
MONITORING = "--profile --metrics"
# Options that scripts rely on.
OPTIONS = {
    "run": f"--workdir --force {WORKERS} {MONITORING} {HOSTS}",
    "prepare": f"--workdir --force {WORKERS} {HOSTS}",
    "teacher": f"--workdir --force {MONITORING} {HOSTS}",
    "cache": f"--workdir --force --writer {HOSTS}",
    "student": f"--workdir --force --only {MONITORING} {HOSTS}",
    "evaluate": f"--workdir --force {HOSTS}",
    "report": f"--workdir {HOSTS}",
    "new": "--task --family --train --teacher",
    "plan": "--workdir --devices --kind --only",
    "shrink": "--workdir",
    "ablate": "--workdir --seeds --force --metric",
    "sample": f"--workdir --only {HOSTS}",
    "import-logprobs": "--workdir --format --temperature --mode --sequence --missing --sum-error --student --force "
    "--config",
    "generate": "--workdir --model --beam --length --temperature --top-k --top-p --min-p --repetition-penalty --seed "
    "--config",
    "score": "--workdir --test --model --config",
    "export": "--workdir --to --model --format --int8 --config",
}


def test_commands_and_options_keep_their_names():
    assert {name: sorted(option_names(kind)) for name, kind in COMMANDS.items()} == {
        name: sorted(options.split()) for name, options in OPTIONS.items()
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_each_option_and_its_default(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: kd-jax {command}" in text and COMMANDS[command].__doc__.splitlines()[0] in " ".join(text.split())
    for option in option_names(COMMANDS[command]):
        _, _, after = text.replace("│", " ").partition(f"\n  {option} ")
        entry = " ".join(after.partition("\n  --")[0].split())
        assert "(default:" in entry or "(required)" in entry, option
        assert len(entry.split()) > 3, option  # it says what the option does


def test_help_lists_every_command_with_one_line(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        for name, kind in COMMANDS.items():
            assert [line for line in text.splitlines() if line.split()[:1] == [name]] == [
                f"  {name:16} {kind.__doc__.splitlines()[0]}"
            ]
        assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["import-logprobs", "-h"]])
def test_help_is_quick_and_imports_no_jax(root, words):
    code = "import sys, kd_jax.cli.main as m; assert m.main(sys.argv[1:]) == 0; assert 'jax' not in sys.modules"
    seconds = []
    for _ in range(3):  # the fastest, since other tests may run beside
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, *words], cwd=root, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
        if seconds[-1] < 1.5:
            break
    assert min(seconds) < 1.5


def test_help_beside_a_config_lists_the_experiments_fields(root, capsys):
    assert main(["run", str(root / SMOKE), "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--workdir", "--teacher.training.steps", "--students.student-kd.terms.kd.signal.k", "--seed"):
        assert option in text


@pytest.mark.parametrize("command", COMMANDS)
def test_a_misspelt_option_suggests_the_nearest(command, capsys):
    option = next(option for option in option_names(COMMANDS[command]))
    assert main([command, option[:-1], "x"]) == 2
    error = capsys.readouterr().err
    assert f"unknown option {option[:-1]}. Did you mean {option}?" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "name, suggestion",
    [
        ("rn", " Did you mean run?"),
        ("students", " Did you mean student?"),
        ("evalaute", " Did you mean evaluate?"),
        ("trian", " Did you mean teacher or student?"),
        ("", ""),
        ("\x1b[2J", ""),
    ],
)
def test_a_misspelt_command_suggests_the_nearest(name, suggestion, capsys):
    assert main([name]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown command ") and error.endswith(f", export.{suggestion}\n")
    assert error.count("\n") == 1 and "\x1b" not in error


@pytest.mark.parametrize(
    "words, message",
    [
        ("run c.py --workdir w --only student_kd", "--only: an option of student, plan, sample, not of run"),
        ("run c.py --workdir w --writer 0/2", "--writer: an option of cache, not of run"),
        ("run c.py --workdir w --seeds 0", "--seeds: an option of ablate, not of run"),
        ("plan c.py --force", "--force: an option of run, prepare,"),
        ("plan c.py --metrics wandb", "--metrics: an option of run, teacher, student, not of plan"),
        ("shrink c.py --workdir w --force", "--force: an option of run, prepare,"),
        ("teacher c.py --workdir w --beam-runner DirectRunner", "--beam-runner: an option of run, prepare, not of"),
        ("export --workdir w --to x --beam 4", "--beam: an option of generate, not of export"),
        ("generate --workdir w --teacher.training.steps 5", "generate: unknown option --teacher.training.steps"),
        ("generate --workdir w word", "generate: unexpected word 'word'"),
    ],
)
def test_an_option_of_another_command_names_it(words, message, capsys):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        ("run", "kd-jax run: missing CONFIG, --workdir DIR"),
        ("run c.py", "kd-jax run: missing --workdir DIR"),
        ("ablate c.py --seeds 0", "missing --workdir DIR"),
        ("ablate c.py --workdir w", "missing --seeds SEED ..."),
        ("shrink c.py", "missing --workdir DIR"),
        ("generate", "missing --workdir DIR"),
        ("export --workdir w", "missing --to FOLDER"),
        ("new", "missing CONFIG, --task"),
        ("import-logprobs f --workdir w", "missing --format {vllm,sglang,distillkit,maxtext}, --temperature T, --mode"),
        ("import-logprobs --workdir w --format vllm --temperature 1 --mode raw", "expected files with log-prob"),
        ("export --workdir w --to x --format onnx", "--format: expected transformers or jax, got 'onnx'."),
        ("generate --workdir w --beam two", "--beam: expected an integer, got 'two'."),
        ("generate --workdir w --seed", "--seed: expected an integer, got none."),
        ("run c.py --workdir w --profile 0:3", "--profile: expected FIRST:LAST, training steps from 1, got 0:3"),
        ("run c.py --workdir w --profile 5", "--profile: expected FIRST:LAST"),
        ("run c.py --workdir w --processes 0", "--processes: expected an integer in [1, 999], got 0"),
        ("run c.py --workdir w --processes two", "--processes: expected an integer, got 'two'."),
        ("run c.py --workdir w --beam-runner DirectRunner --processes 2", "--processes: expected no --beam-runner"),
        ("run c.py --workdir w --beam-options x", "--beam-options: expected --beam-runner beside it"),
        ("run c.py --workdir w --patience 9", "--patience: expected --host beside it"),
        ("run c.py --workdir w --coordinator a:1", "--coordinator: expected --host beside it"),
        ("run c.py --workdir w --host 0/2", "--coordinator: expected ADDRESS:PORT of process 0"),
        ("run c.py --workdir w --host 2/2 --coordinator a:1", "--host: expected NUMBER/COUNT with NUMBER below COUNT"),
        ("run c.py --workdir s3://a/w --host 0/2 --coordinator a:1", "--host: expected a workdir in gs://"),
        ("run c.py --workdir w --metrics paper", "paper"),
        ("run c.py --workdir gs://a/w --profile 1:2", "--profile: expected a --workdir on a disk, got gs://a/w"),
        ("cache c.py --workdir w --writer 2/2", "--writer: expected NUMBER/COUNT with NUMBER below COUNT, got 2/2"),
        ("ablate c.py --workdir w --seeds 0 0", "--seeds: expected each seed once, got 0 0"),
        ("ablate c.py --workdir w --seeds -1", "--seeds: expected integers in [0, 4294967295], got -1"),
        ("plan c.py --devices 8", "--kind: expected one of tpu-v5e, tpu-v5p, tpu-v6e, h100, h200, got ''"),
        ("plan c.py --kind h100", "--devices: expected an integer in [1, 10000], got 0"),
        ("plan c.py --only teacher", "--only: expected --devices and --kind beside it"),
    ],
)
def test_options_that_do_not_fit_are_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())  # no workdir is made


def test_a_writer_is_not_a_host():
    with pytest.raises(KdError, match="--writer: expected no --host beside it"):
        hosts = HostOptions(host="auto")
        Cache("c.py", "w", hosts=hosts, writer="0/2").prepare([], None)


def test_options_are_plain_values():
    assert parse_share("writer", "3/4") == (3, 4)
    assert MonitoringOptions(profile="10:15").steps == (10, 15) and MonitoringOptions().steps is None
    assert all(dataclasses.is_dataclass(kind) for kind in COMMANDS.values())
