"""From the words of a command to the phases that it calls, and with what."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.resolve import resolve
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment

Call = tuple[str, dict[str, Any]]  # a phase, and what its `run` is given


@contextlib.contextmanager
def job(words: argparse.Namespace) -> Iterator[list[Call]]:
    """The phases to be called within the block; the workdir is this process's until it ends.

    Raises:
      KdError: if an option is missing or does not fit the command, or another process works in the workdir.
    """
    share_compiled_programs()
    if words.command == "generate":
        workdir = _workdir(words.workdir)
        given = {"experiment": recall(workdir), "workdir": workdir, "model": words.model, "changes": words.changes}
        yield [("generate", given)]
        return
    for option, command in (("only", "student"), ("writer", "cache")):
        if vars(words)[option] and words.command != command:
            raise KdError(f"--{option}: goes with the command {command} alone")
    if words.command == "plan" and words.force:
        raise KdError("--force: plan keeps nothing that could be done again; leave it out")
    experiment = resolve(words.config, words.overrides)
    if words.command == "plan":
        yield [("plan", {"experiment": experiment, "workdir": words.workdir and _workdir(words.workdir)})]
        return
    workdir = _workdir(words.workdir)
    given = {"experiment": experiment, "workdir": workdir, "force": words.force}
    given |= {option: vars(words)[option] for option in ("only", "writer") if vars(words)[option]}
    with workdir.lock(words.writer):
        if workdir.config.exists():
            recall(workdir)  # a file of somebody else's is refused, not written over
        else:
            remember(workdir, experiment)
        yield [(phase, given) for phase in words.phases]
        # Only now: a configuration that a phase refused must not take the place of the one that made what is there.
        remember(workdir, experiment)


def remember(workdir: Workdir, experiment: Experiment) -> None:
    """Keeps the resolved experiment as data, so that `generate` needs the workdir alone."""
    manifest.write_json(workdir.config, config.to_data(experiment))


def recall(workdir: Workdir) -> Experiment:
    """The experiment that a workdir was made by, read without executing anything.

    Raises:
      KdError: if the folder holds no run.
    """
    if not workdir.config.exists():
        path = workdir.path
        raise KdError(f"--workdir {path}: holds no run; make one with `python -m kd_jax run CONFIG --workdir {path}`")
    experiment = config.from_data(manifest.read_json(workdir.config))
    if not isinstance(experiment, Experiment):
        raise KdError(f"{workdir.config}: not as kd_jax writes it; move it away, or take another --workdir")
    return experiment


def _workdir(given: Path | None) -> Workdir:
    if given is None:
        raise KdError("--workdir: missing; wanted the folder to keep the run in, such as runs/quickstart")
    if given.exists() and not given.is_dir():
        raise KdError(f"--workdir {given}: not a folder; take another")
    return Workdir(given)


def share_compiled_programs() -> None:
    """Compiled programs outlive the process, so that phases and reruns share them."""
    folder = os.environ["KD_JAX_CACHE"] if "KD_JAX_CACHE" in os.environ else "~/.cache/kd_jax/xla"
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
