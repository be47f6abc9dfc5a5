"""`python -m kd_jax` in processes of their own. They are forked from one that has imported it already."""

import atexit
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import jax

from kd_jax.cli.main import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "kd_jax.api",
        "tests.faults.pipeline",
        *(f"kd_jax.phases.{phase}" for phase in ("prepare", "teacher", "cache", "student", "evaluate", "report")),
    ]
)


class Stop(NamedTuple):
    """A signal that a process sends itself at a commit: when a file or folder is renamed to its final name.

    Attributes:
      name: how the final path ends.
      number: of the signal.
      committed: whether the rename happens first.
    """

    name: str
    number: int = signal.SIGKILL
    committed: bool = False


def start(
    arguments: list[str],
    log: Path,
    largest_file: int = resource.RLIM_INFINITY,
    devices: int = 1,
    stop: Stop | None = None,
) -> multiprocessing.Process:
    """Start the command on CPU devices; its output is appended to `log`.

    It cannot write a file of more bytes than `largest_file`.
    """
    process = CONTEXT.Process(target=_run, args=(arguments, log, largest_file, devices, stop))
    process.start()
    return process


def _run(arguments: list[str], log: Path, largest_file: int, devices: int, stop: Stop | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    jax.config.update("jax_num_cpu_devices", devices)
    if stop:
        _stop_at_commit(stop)
    code = main(arguments)
    sys.stderr.flush()
    if "--host" in arguments and not code:
        atexit._run_exitfuncs()  # hosts leave together as Python ends, which multiprocessing skips
    os._exit(code)


def _stop_at_commit(stop: Stop) -> None:
    """Make every rename to a path that ends with `stop.name` send this process the signal."""

    def stopping(rename):
        def wrapper(source, target, *args, **kwargs):
            here = os.fspath(target).endswith(stop.name)
            if here and not stop.committed:
                os.kill(os.getpid(), stop.number)
            result = rename(source, target, *args, **kwargs)
            if here and stop.committed:
                os.kill(os.getpid(), stop.number)
            return result

        return wrapper

    os.rename, os.replace = stopping(os.rename), stopping(os.replace)
