"""Cases of a drill: each spoils a copy of a finished run, or makes a mistake, and runs one command in its own process.

A command must refuse in one line (exit code 2), or be unaffected: give what it gives on the intact run.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["refused", "unaffected", "traceback", "hang", "silent", "memory"]
OUTCOMES: tuple[Outcome, ...] = ("refused", "unaffected", "traceback", "hang", "silent", "memory")
FAILURES = OUTCOMES[2:]
SECONDS = 120  # after which a command counts as hung
MEMORY = 3 * 2**30  # bytes of resident memory that no case on a tiny run needs
TINY = Path(__file__).with_name("tiny.py")
PROMPTS = "one red houses\ntwo blue birds\n"
Spoil = Callable[[Path], object]


def nothing(sandbox: Path) -> None:
    """Spoil nothing."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One command on a spoilt copy of the run.

    Attributes:
      name: what is wrong, unique.
      words: the command; {run}, {config} and {here} stand for the copy, the experiment file and the sandbox.
      spoil: called with the sandbox, whose folder `run` is the copy.
      refused: whether only a refusal is right; otherwise the intact run's result is right too.
      stdin: text of standard input.
      is_right: says whether a standard output is right; None to compare with the intact run.
      environment: variables to set (None removes one); the command then runs as a process of its own.
      redirection: of the shell, such as ">&-".
    """

    name: str
    words: tuple[str, ...]
    spoil: Spoil = nothing
    refused: bool = True
    stdin: str = PROMPTS
    is_right: Callable[[str], bool] | None = None
    environment: Mapping[str, str | None] | None = None
    redirection: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a case gave.

    Attributes:
      case: its name.
      outcome: one of OUTCOMES.
      code: the exit code.
      seconds: from start to end.
      error: the end of standard error.
    """

    case: str
    outcome: Outcome
    code: int
    seconds: float
    error: str


def make_run(folder: Path) -> Path:
    """Make the finished run that every case gets a copy of, unless it is there."""
    run = folder / "intact"
    if not (run / "report" / "manifest.json").exists():
        command = [sys.executable, "-m", "kd_jax", "run", str(TINY), "--workdir", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


class Drill:
    """Runs cases in forked children of this process, which has imported everything and started no JAX backend."""

    def __init__(self, folder: Path):
        """Make the run; results of intact commands are computed once."""
        self._folder, self._run = folder, make_run(folder)
        self._intact: dict[tuple[str, ...], Any] = {}

    def run(self, case: Case) -> Result:
        """Run a case and judge it."""
        if not (case.refused or case.is_right) and case.words not in self._intact:
            with self._sandbox() as sandbox:
                code, _, _, out, err = self._execute(dataclasses.replace(case, spoil=nothing), sandbox)
                if code:
                    raise RuntimeError(f"{case.words} fails on the intact run: {err}")
                self._intact[case.words] = gist(case.words, sandbox, out)
        with self._sandbox() as sandbox:
            case.spoil(sandbox)
            code, seconds, peak, out, err = self._execute(case, sandbox)
            outcome = self._judge(case, sandbox, code, peak, out, err)
            return Result(case.name, outcome, code, seconds, err[-2000:])

    @contextlib.contextmanager
    def _sandbox(self) -> Iterator[Path]:
        sandbox = self._folder / "sandbox"
        _remove(sandbox)
        sandbox.mkdir()
        shutil.copytree(self._run, sandbox / "run")
        try:
            yield sandbox
        finally:
            _remove(sandbox)

    def _execute(self, case: Case, sandbox: Path) -> tuple[int, float, int, str, str]:
        """Return (exit code, or minus a signal; seconds; peak memory; standard output; standard error)."""
        names = {"run": sandbox / "run", "config": TINY, "here": sandbox}
        words = [word.format(**names) if "{" in word else word for word in case.words]
        files = [self._folder / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(case.stdin)
        begun = time.monotonic()
        pid = os.fork()
        if not pid:
            _become(words, case, files, sandbox)
        code, peak = _wait(pid, begun + SECONDS)
        out, err = (file.read_text(errors="replace") for file in files[1:])
        return code, time.monotonic() - begun, peak, out, err

    def _judge(self, case: Case, sandbox: Path, code: int, peak: int, out: str, err: str) -> Outcome:
        last = err.strip().split("\n")[-1]
        if code == -signal.SIGKILL:
            return "hang"
        if peak > MEMORY:
            return "memory"
        if "Traceback (most recent call last)" in err or "This is a bug of kd_jax" in err or code not in (0, 2):
            return "traceback"
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out + err):
            return "silent"  # a control character has reached the terminal
        if code == 2:
            return "refused" if last.startswith("error: ") and err.count("error: ") == 1 else "traceback"
        if case.refused:
            return "silent"
        right = case.is_right(out) if case.is_right else gist(case.words, sandbox, out) == self._intact[case.words]
        return "unaffected" if right else "silent"


def _become(words: Sequence[str], case: Case, files: Sequence[Path], sandbox: Path) -> None:
    """Run the command in this forked child; never return."""
    code = 70
    try:
        os.setsid()
        os.chdir(sandbox)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
        for number, file in enumerate(files):
            os.dup2(os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CREAT if number else os.O_RDONLY), number)
        if case.environment is not None or case.redirection:
            environment = {**os.environ, **(case.environment or {})}
            environment = {name: value for name, value in environment.items() if value is not None}
            command = ["sh", "-c", f'exec "$@" {case.redirection}', "sh", sys.executable, "-m", "kd_jax", *words]
            os.execve("/bin/sh", command, environment)
        sys.stdin, sys.stdout, sys.stderr = (open(number, "r" if number == 0 else "w") for number in range(3))  # noqa: SIM115
        from kd_jax.cli.entry import open_streams
        from kd_jax.cli.main import main

        open_streams()
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(pid: int, deadline: float) -> tuple[int, int]:
    """Return the exit code of a child and its peak memory in bytes; kill its group at the deadline."""
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.wait4(pid, 0)
            return -signal.SIGKILL, 0
        time.sleep(0.02)


def gist(words: Sequence[str], sandbox: Path, out: str) -> Any:
    """Return what a command's result is judged by: its texts, figures or parameters, without times."""
    run = sandbox / "run"
    if words[0] == "report":
        return (run / "report/report.json").read_text()
    if words[0] == "evaluate":
        return _digests(run.glob("evaluation/*.jsonl"))
    if words[0] == "student":
        return json.loads((run / "students/student_kd/manifest.json").read_text())["outputs"]["digest"]
    if words[0] == "cache":
        return _digests(run.glob("cache/*/records*"))
    if words[0] == "export":
        return _digests((sandbox / "out").iterdir())
    return out


def _digests(paths: Iterator[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _remove(folder: Path) -> None:
    if folder.exists():
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)
