"""`python -m kd_jax` in processes of their own that need not import it: they are forked from one that has."""

import multiprocessing
import os
import sys
from pathlib import Path

from kd_jax.cli.main import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "kd_jax.cli.job",
        "tests.faults.pipeline",
        *(f"kd_jax.phases.{phase}" for phase in ("prepare", "teacher", "cache", "student", "evaluate", "report")),
    ]
)


def start(arguments: list[str], log: Path) -> multiprocessing.Process:
    """The command, begun; what it says is appended to `log`."""
    process = CONTEXT.Process(target=_run, args=(arguments, log))
    process.start()
    return process


def _run(arguments: list[str], log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = main(arguments)
    sys.stderr.flush()
    os._exit(code)
