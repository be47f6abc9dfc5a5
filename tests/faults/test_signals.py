"""Ctrl-C and SIGTERM at any moment of a command: one line, the exit code, and nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.test_kills import SHORT as WORDS

SHORT = [*" ".join(WORDS).split(), "--evaluation.draft", "0"]
RESUMES = "; the same command resumes from the last checkpoint"
SOON = 30  # seconds in which a process has ended, on a busy machine; it takes one or two


def start(command, folder, **variables):
    """Start a command that takes Ctrl-C, also where the tests run in a script's background."""
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def kd_jax(root, *words, **variables):
    return start([sys.executable, "-m", "kd_jax", *map(str, words)], root, **variables)


def last_line(process, seconds=SOON):
    """Return (exit code, last line of standard error); it holds no traceback."""
    process.wait(seconds)
    text = process.stderr.read()
    assert "Traceback" not in text and "KeyboardInterrupt" not in text, text
    return process.returncode, text.rstrip("\n").rpartition("\n")[2]


@pytest.mark.parametrize("seconds", [0.4, pytest.param(1.5, marks=pytest.mark.extended)])
@pytest.mark.parametrize(
    "number, code, line",
    [
        (signal.SIGINT, 130, "stopped"),
        (signal.SIGTERM, 0, "stopped by SIGTERM; the same command resumes the run"),
    ],
)
def test_a_signal_while_the_command_starts_leaves_a_line(root, tmp_path, seconds, number, code, line):
    process = kd_jax(root, "run", "experiments/configs/smoke.py", "--workdir", tmp_path / "work", *SHORT)
    time.sleep(seconds)
    process.send_signal(number)
    assert last_line(process) in [(code, line), (code, line + RESUMES)]


@pytest.mark.parametrize(
    "number, code, line", [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
)
def test_a_signal_ends_a_command_that_waits_for_input(root, smoke_run, number, code, line):
    process = kd_jax(root, "generate", "--workdir", smoke_run)
    process.stdin.write("one red houses\n" * 512)  # it answers these, then it waits
    process.stdin.flush()
    time.sleep(8)
    process.send_signal(number)
    start_time = time.monotonic()
    assert last_line(process) == (code, line)
    assert time.monotonic() - start_time < 5


SCRIPT = """
import hashlib, signal, sys, time
from kd_jax.runtime import preemption

def native():  # minutes, without the interpreter and its lock
    print("native", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

def swallow():  # as a library may that calls a check of ours
    print("swallow", file=sys.stderr, flush=True)
    try:
        while True:
            preemption.poll()
    except KeyboardInterrupt:
        pass

def work():
    print("work", file=sys.stderr, flush=True)
    time.sleep(60)

preemption.EXIT_SECONDS = 2.0
{setup}
preemption.install()
try:
    with preemption.handle_signals(resumes=True):
        {body}
except KeyboardInterrupt:
    print(preemption.last_line(signal.SIGINT), file=sys.stderr, flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize(
    "body",
    [
        "swallow()",
        "swallow(); preemption.poll(); work()",
        "swallow(); work()",
        "swallow(); 1 / 0",
        "native()",
        "work()",
    ],
    ids=["at the end", "at a poll", "never", "as another error", "native code", "no check"],
)
def test_ctrl_c_that_nobody_sees_ends_the_process(root, body):
    process = start([sys.executable, "-c", SCRIPT.format(setup="", body=body)], root)
    assert process.stderr.readline() in ("swallow\n", "native\n", "work\n")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert last_line(process) == (130, "stopped" + RESUMES)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_at_once(root, number, code):
    """The main thread is in native code, and would take notice of nothing."""
    script = SCRIPT.format(setup="preemption.DEAF_SECONDS = 60.0", body="native()")
    process = start([sys.executable, "-c", script], root)
    assert process.stderr.readline() == "native\n"
    time.sleep(0.3)
    for _ in range(2):
        process.send_signal(number)
        time.sleep(0.3)
    line = "stopped" if number == signal.SIGINT else "stopped by SIGTERM"
    assert last_line(process) == (code, line + RESUMES)


def test_an_ignored_ctrl_c_stays_ignored(root):
    """A shell starts a script's background jobs so."""
    code = "import os, signal; from kd_jax.runtime import preemption; preemption.install(); os.kill(os.getpid(), 2)"
    process = subprocess.run(
        [sys.executable, "-c", f"import signal; signal.signal(2, signal.SIG_IGN); {code}"], cwd=root
    )
    assert process.returncode == 0


def digests(workdir):
    """Return the digest of every model's parameters."""
    return {
        path.parent.name: json.loads(path.read_text())["outputs"]["digest"]
        for path in sorted([workdir / "teacher/manifest.json", *workdir.glob("students/*/manifest.json")])
    }


@pytest.mark.extended
def test_ctrl_c_at_many_moments_loses_nothing(root, tmp_path):
    """Every run has an empty cache of compiled programs, so most moments are inside a trace or the compiler."""
    words = ["run", "experiments/configs/smoke.py", "--workdir"]
    codes = []
    for moment in (0.2, 0.7, 1.5, 3.0, 4.5, 6.0, 8.0, 10.0, 12.0):
        process = kd_jax(root, *words, tmp_path / "work", *SHORT, KD_JAX_CACHE=str(tmp_path / f"xla{moment}"))
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        codes.append(last_line(process)[0])
    assert set(codes) <= {130, 0} and codes.count(130) > 4  # the last ones may find nothing left to do
    for name in ("work", "uninterrupted"):
        assert last_line(kd_jax(root, *words, tmp_path / name, *SHORT), 600)[0] == 0
    assert digests(tmp_path / "work") == digests(tmp_path / "uninterrupted")
    assert len(digests(tmp_path / "work")) == 4
