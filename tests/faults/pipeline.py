"""`python -m kd_jax` in processes of their own that need not import it: they are forked from one that has."""

import atexit
import multiprocessing
import os
import resource
import sys
from pathlib import Path

import jax

from kd_jax.cli.main import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "kd_jax.cli.job",
        "tests.faults.pipeline",
        *(f"kd_jax.phases.{phase}" for phase in ("prepare", "teacher", "cache", "student", "evaluate", "report")),
    ]
)


def start(
    arguments: list[str], log: Path, largest_file: int = resource.RLIM_INFINITY, devices: int = 1
) -> multiprocessing.Process:
    """The command, begun on so many devices; what it says is appended to `log`.

    It can write no file of more bytes than `largest_file`.
    """
    process = CONTEXT.Process(target=_run, args=(arguments, log, largest_file, devices))
    process.start()
    return process


def _run(arguments: list[str], log: Path, largest_file: int, devices: int) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    jax.config.update("jax_num_cpu_devices", devices)
    code = main(arguments)
    sys.stderr.flush()
    if "--host" in arguments:
        atexit._run_exitfuncs()  # hosts leave together as Python ends, which multiprocessing would not see to
    os._exit(code)
