"""Several hosts on one run, as processes on loopback: the result equals one host's, and none waits for dead ones."""

import contextlib
import json
import os
import shutil
import signal
import socket
import time

import chex
import jax
import numpy as np
import pytest

from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches.store import Store
from kd_jax.cli.overrides import apply_overrides
from kd_jax.training.model import load_trained
from tests.faults.pipeline import start

STUDENTS = ("student_scratch", "student_init", "student_kd")
SHORT = "--evaluation.bootstrap 10 --evaluation.speed-texts 1 --evaluation.draft 0"
for recipe, steps, each in (("teacher", 24, 12), *((f"students.{name}", 8, 4) for name in STUDENTS)):
    field = f"--{recipe}.training"
    SHORT += f" {field}.steps {steps} {field}.eval-every {each} {field}.optimizer.warmup 2"
PATIENCE = 600  # seconds, on a busy machine
LOST = 120  # seconds in which the others notice that a host has died


def command(root, name, backend="--backend mesh"):
    return [str(root / f"experiments/configs/{name}.py"), *SHORT.split(), *backend.split()]


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start_hosts(arguments, path, hosts, devices=1, options=()):
    """Start one process for each host."""
    return start_each([arguments] * hosts, path, [f"{i}/{hosts}" for i in range(hosts)], devices, options)


def start_each(commands, path, numbers, devices=1, options=()):
    """Start a process of its own command for each number."""
    coordinator = free_address()
    path.parent.mkdir(exist_ok=True)
    return [
        start(
            [*arguments, "--workdir", str(path), "--host", number, "--coordinator", coordinator, *options],
            log(path, i),
            devices=devices,
        )
        for i, (arguments, number) in enumerate(zip(commands, numbers, strict=True))
    ]


def last_line(path, host):
    """Return the last line of a host's log; no traceback and no native stack may come after it, or in its place."""
    return log(path, host).read_text().splitlines()[-1]


def log(path, host):
    return path.with_name(f"{path.name}.{host}.log")


def exit_codes(processes, patience=PATIENCE):
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    return [process.exitcode for process in processes]


def train_until_checkpoint(config, path, options=()):
    """Start two hosts that train the teacher; return them once there is a checkpoint of this start."""
    folder = path / "teacher/checkpoints"
    before = {step.name for step in folder.glob("*")}
    both = start_hosts(["teacher", *config], path, 2, options=options)
    deadline = time.monotonic() + PATIENCE
    while not any(step.name.isdigit() and step.name not in before for step in folder.glob("*")):
        assert time.monotonic() < deadline and all(process.is_alive() for process in both), last_line(path, 0)
        time.sleep(0.05)
    return both


def assert_close(path, expected, config):
    """Check that two runs agree but for the order of float sums."""
    experiment = apply_overrides(config[0], config[1:])
    for name in ("teacher", *STUDENTS):
        params = [jax.device_get(load_trained(experiment, Workdir(run), name)[1]) for run in (path, expected)]
        chex.assert_trees_all_close(*params, atol=2e-4)
        chosen = [Workdir(run).model(name).outputs() for run in (path, expected)]
        assert chosen[0]["best_step"] == chosen[1]["best_step"]
        assert chosen[0].get("valid_bleu") == pytest.approx(chosen[1].get("valid_bleu"), abs=1.0)  # of few texts
        figures = [json.loads((run / f"evaluation/{name}.json").read_text()) for run in (path, expected)]
        for figure in ("cross_entropy", "kl_to_teacher", "examples", "parameters"):
            assert figures[0][figure] == pytest.approx(figures[1][figure], abs=2e-3)
        rows = [(run / f"evaluation/{name}.jsonl").read_text().count("\n") for run in (path, expected)]
        assert rows[0] == rows[1] > 0
    caches = [Store(run / "cache/topk", "records") for run in (path, expected)]
    assert len(caches[0]) == len(caches[1]) > 0
    for i in range(len(caches[1])):
        records = [cache[i] for cache in caches]
        np.testing.assert_array_equal(records[0]["digest"], records[1]["digest"])
        top_logits = [record["logits"][:, 0].astype(float) for record in records]
        np.testing.assert_allclose(*top_logits, atol=2e-2)  # float16
    assert json.loads((path / "report/report.json").read_text())["models"].keys() == {"teacher", *STUDENTS}


@pytest.mark.parametrize(
    "name, hosts, devices, mesh",
    [
        pytest.param("smoke", 2, 2, "--mesh.fsdp 2", marks=pytest.mark.extended),
        pytest.param("smoke", 4, 1, "", marks=pytest.mark.extended),
        pytest.param("smoke_lm", 2, 1, "", marks=pytest.mark.extended),
    ],
)
def test_several_hosts_equal_one(root, tmp_path, name, hosts, devices, mesh):
    one, path = tmp_path / "one", tmp_path / "several"
    config = command(root, name)
    single = start(["run", *config, "--workdir", str(one)], log(one, 0))
    assert exit_codes([single]) == [0], log(one, 0).read_text()
    processes = start_hosts(["run", *config, *mesh.split()], path, hosts, devices)
    assert exit_codes(processes) == [0] * hosts, log(path, 0).read_text()
    assert_close(path, one, config)
    assert f"report: {path}/report/report.html" in log(path, 0).read_text()
    assert not [line for line in log(path, 1).read_text().splitlines() if line.startswith(("teacher", "cache", "data"))]


OWN = """
import dataclasses
from kd_jax import OnPolicy, Online, Term, Training, forward_kl, load_experiment

smoke = load_experiment({smoke!r})
ce = smoke.students["student_init"]
own = dataclasses.replace(ce, terms={{"kd": Term(forward_kl, signal=Online())}}, targets=OnPolicy(share=0.5, pool=4))
experiment = dataclasses.replace(smoke, students={{"own": own}}, comparison=None, backend="mesh")
"""


@pytest.mark.extended
def test_two_hosts_write_the_texts_of_one(root, tmp_path):
    """Each host writes a part of the texts, and both learn from all of them."""
    config = tmp_path / "own.py"
    config.write_text(OWN.format(smoke=str(root / "experiments/configs/smoke.py")))
    words = [
        *["--teacher.training.steps", "60", "--teacher.training.eval-every", "30"],
        *["--students.own.training.steps", "8", "--students.own.training.eval-every", "4"],
        *["--students.own.training.optimizer.warmup", "2", "--evaluation.cached-k", "0"],
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    for phase in ("prepare", "teacher"):
        assert exit_codes([start([phase, str(config), *words, "--workdir", str(one)], log(one, 0))]) == [0]
    shutil.copytree(one, two)
    student = ["student", str(config), *words]
    assert exit_codes([start([*student, "--workdir", str(one)], log(one, 0))]) == [0], log(one, 0).read_text()
    assert exit_codes(start_hosts(student, two, 2)) == [0, 0], log(two, 0).read_text()
    texts = [(path / "students/own/own_texts/00000001.jsonl").read_text() for path in (one, two)]
    assert texts[0] == texts[1]
    assert texts[0].count("\n") > 20
    experiment = apply_overrides(str(config), words)
    params = [jax.device_get(load_trained(experiment, Workdir(path), "own")[1]) for path in (one, two)]
    chex.assert_trees_all_close(*params, atol=2e-3)  # a draw may differ after an update that is rounded otherwise


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory):
    """Return a config with a long training of the teacher, and a workdir with its data."""
    path = tmp_path_factory.mktemp("prepared") / "work"
    config = [*command(root, "smoke"), "--teacher.training.steps", "4000", "--teacher.training.eval-every", "20"]
    assert exit_codes([start(["prepare", *config, "--workdir", str(path)], log(path, 0))]) == [0]
    return config, path


def test_sigterm_to_one_host_stops_all(prepared):
    config, path = prepared
    both = train_until_checkpoint(config, path)
    os.kill(both[1].pid, signal.SIGTERM)
    assert exit_codes(both, LOST) == [0, 0], log(path, 0).read_text()
    assert "stopped by SIGTERM" in log(path, 0).read_text()


@pytest.mark.extended
def test_death_of_one_host_ends_all_and_fewer_resume(prepared):
    """The resumed run has another number of hosts and the same batches."""
    config, path = prepared
    both = train_until_checkpoint(config, path)
    time.sleep(2)
    os.kill(both[1].pid, signal.SIGKILL)
    assert exit_codes(both, LOST)[0] == 2
    assert (
        last_line(path, 0)
        == "error: host 0: host 1 has died, so this one ends too. Run the same command again to resume."
    )
    single = start(["teacher", *config, "--workdir", str(path)], log(path, 9))
    deadline = time.monotonic() + PATIENCE
    while "resuming from step" not in (log(path, 9).read_text() if log(path, 9).exists() else ""):
        assert single.is_alive() and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(single.pid, signal.SIGTERM)
    assert exit_codes([single]) == [0]


@pytest.mark.extended
def test_hanging_host_ends_all(prepared):
    config, path = prepared
    both = train_until_checkpoint(config, path, ("--patience", "45"))
    time.sleep(2)
    os.kill(both[1].pid, signal.SIGSTOP)
    ended = exit_codes(both[:1], LOST)
    os.kill(both[1].pid, signal.SIGKILL)
    assert ended == [2]
    # Its own line if it was inside a collective; JAX notices where it waited for a value of the other.
    line = last_line(path, 0)
    assert line.startswith(("error: host 0: no progress for", "error: host 0: JAX has ended it")), line


def test_error_of_the_main_process_ends_all(root, tmp_path):
    config = [*command(root, "smoke"), "--source.examples", "1"]
    both = start_hosts(["prepare", *config], tmp_path / "work", 2)
    assert exit_codes(both, LOST) == [2, 2]
    errors = [log(tmp_path / "work", i).read_text().splitlines()[-1] for i in range(2)]
    assert errors[0] == errors[1] and errors[0].startswith("error: ")


SOON = 45  # seconds: 20 for the hosts that do not come, and the imports on a busy machine


@pytest.mark.parametrize(
    "difference, message",
    [
        (["--source.examples", "300"], "source.examples: expected the same on all hosts, got 400 on host 0 and 300 on"),
        pytest.param(["--students.student_kd.terms.kd.weight", "0.5"], "terms.kd.weight", marks=pytest.mark.extended),
        pytest.param(["--force"], "--force: expected the same", marks=pytest.mark.extended),
    ],
)
def test_different_experiments_are_noticed_before_any_work(root, tmp_path, difference, message):
    config = ["teacher", *command(root, "smoke")]
    both = start_each([config, [*config, *difference]], tmp_path / "work", ["0/2", "1/2"])
    assert exit_codes(both, LOST) == [2, 2]
    lines = [last_line(tmp_path / "work", i) for i in range(2)]
    assert lines[0] == lines[1] and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "work").exists()


@pytest.mark.extended
@pytest.mark.parametrize("difference", ["command", "text"])
def test_other_commands_and_config_texts_are_noticed(root, tmp_path, difference):
    config = command(root, "smoke")
    other = tmp_path / "smoke.py"
    other.write_text((root / "experiments/configs/smoke.py").read_text() + "# the same experiment, another text\n")
    theirs = ["student", *config] if difference == "command" else ["teacher", str(other), *config[1:]]
    both = start_each([["teacher", *config], theirs], tmp_path / "work", ["0/2", "1/2"])
    assert exit_codes(both, LOST) == [2, 2]
    expected = "error: command: expected the same" if difference == "command" else "error: CONFIG: expected the same"
    assert last_line(tmp_path / "work", 0).startswith(expected)


@pytest.mark.parametrize(
    "numbers, message",
    [
        (["0/2", "1/3"], "--host: expected the same COUNT on all hosts, got 0/2 and 1/3"),
        pytest.param(["0/3", "1/3", "1/3"], "two hosts with 1/3", marks=pytest.mark.extended),
        pytest.param(["0/2", "0/2"], "two hosts with 0/2", marks=pytest.mark.extended),
        pytest.param(
            ["0/2"], "expected 2 hosts within 20 seconds, got none with the number 1", marks=pytest.mark.extended
        ),
        pytest.param(["1/2", "1/2"], "expected host 0 at 127.0.0.1:", marks=pytest.mark.extended),
    ],
)
def test_wrong_numbers_are_one_line_on_every_host(root, tmp_path, numbers, message):
    processes = start_each([["teacher", *command(root, "smoke")]] * len(numbers), tmp_path / "work", numbers)
    assert exit_codes(processes, SOON) == [2] * len(numbers)
    for i in range(len(numbers)):
        text = log(tmp_path / "work", i).read_text()
        assert text.count("\n") == 1 and text.startswith("error: ") and message in text, text


@pytest.mark.parametrize(
    "stranger", ["talking", *(pytest.param(x, marks=pytest.mark.extended) for x in ("silent", "rude"))]
)
@pytest.mark.parametrize("number", ["0/2", pytest.param("1/2", marks=pytest.mark.extended)])
def test_a_port_of_another_program_is_one_line(root, tmp_path, stranger, number):
    """On host 0 the port is not free; another host finds a program that says nothing, something, or hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
        options = ["--host", number, "--coordinator", coordinator]
        arguments = ["teacher", *command(root, "smoke"), "--workdir", str(tmp_path / "work"), *options]
        process = start(arguments, log(tmp_path / "work", 0))
        server.settimeout(SOON)
        connection, _ = server.accept()
        if stranger == "rude":
            connection.close()
        else:
            stack.enter_context(connection)
        if stranger == "talking":
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 5000)
        assert exit_codes([process], SOON) == [2]
    text = log(tmp_path / "work", 0).read_text()
    expected = "a port that is free here on host 0" if number == "0/2" else "got another program"
    assert text.count("\n") == 1 and text.startswith("error: --coordinator: expected ") and expected in text


@pytest.mark.extended
def test_death_of_the_main_process_ends_the_others_with_a_line(prepared):
    config, path = prepared
    both = train_until_checkpoint(config, path)
    time.sleep(2)
    os.kill(both[0].pid, signal.SIGKILL)
    assert exit_codes(both[1:], LOST) == [2]
    assert last_line(path, 1).startswith("error: ") and "Run the same command again" in last_line(path, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--host", "2/2"], "--host: expected NUMBER/COUNT with NUMBER below COUNT, got 2/2"),
        (["--host", f"0/{'9' * 5000}"], "--host: expected NUMBER/COUNT with NUMBER below COUNT, got "),
        (["--host", "0/2"], "--coordinator: expected ADDRESS:PORT of process 0, got none"),
        (["--host", "auto"], "--host: expected a TPU pod, SLURM or MPI for `auto`, got none of them"),
        (["--host", "1/2", "--coordinator", "127.0.0.1:99999"], "--coordinator: expected ADDRESS:PORT with a port in"),
        (["--host", "0/2", "--coordinator", "127.0.0.1"], "--coordinator: expected ADDRESS:PORT with a port in"),
        (["--host", "1/2", "--coordinator", "no.such.host.invalid:1"], "expected an address that this machine knows"),
        (
            ["--host", "0/2", "--coordinator", "192.0.2.1:1234"],
            "--coordinator: expected an address of host 0, which is",
        ),
        (
            ["--host", "1/2", "--coordinator", "127.0.0.1:1", "--wait", "2"],
            "got no answer in 2 seconds (Connection ref",
        ),
        (["--coordinator", "127.0.0.1:1"], "--coordinator: expected --host beside it, got none"),
        (["--wait", "5"], "--wait: expected --host beside it, got none"),
        (["--host", "0/2", "--coordinator", "127.0.0.1:1", "--patience", "nan"], "--patience: expected 1 to 1000000"),
    ],
)
def test_invalid_host_options_are_refused(root, tmp_path, options, message):
    path = tmp_path / "work"
    process = start(["run", *command(root, "smoke"), "--workdir", str(path), *options], log(path, 0))
    assert exit_codes([process], SOON) == [2]
    text = log(path, 0).read_text()
    assert text.count("\n") == 1 and text.startswith("error: ") and message in text
