"""From the words of a command to the phases that it calls, and with what."""

import argparse
import contextlib
import dataclasses
import importlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from kd_jax import config
from kd_jax.artifacts import files, manifest, metric_writers
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches.beam_runner import BeamRunner
from kd_jax.batches.workers import Processes, Workers
from kd_jax.phases.check import check
from kd_jax.cli.overrides import apply_overrides
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, resolve
from kd_jax.phases import OF_ONE_HOST, PHASES
from kd_jax.reporting.ablation import chosen_metrics
from kd_jax.reporting.controls import with_controls
from kd_jax.runtime import backends, chips, hosts, preemption
from kd_jax.teaching.imported.base import LogprobSource

TRAINING = ("teacher", "student")  # the phases that train
Call = tuple[str, dict[str, Any]]  # a phase, and what its `run` is given


def run(experiment: Experiment, workdir: str | Path, force: bool = False) -> dict[str, Any]:
    """All phases, as the command `run` has them: a finished one is skipped, an unfinished one goes on.

    Compiled programs are kept where the command keeps them (KD_JAX_CACHE), for the rest of this process too.

    Args:
      experiment: what a config calls `experiment`.
      workdir: the folder to keep the run in; this process's until all is done.
      force: does finished phases again, from nothing.

    Returns:
      What report/report.json says.

    Raises:
      KdError: if the experiment cannot be run, the workdir was made with another one, or is another process's.

    Examples:
      >>> from kd_jax import load_experiment
      >>> smoke = load_experiment("experiments/configs/smoke.py")
      >>> report = run(smoke, "runs/smoke")  # doctest: +SKIP
      >>> run(dataclasses.replace(smoke, seed=-1), "runs/smoke")  # before any work
      Traceback (most recent call last):
      kd_jax.errors.KdError: seed: -1; wanted a whole number from 0 to 4294967295
    """
    share_compiled_programs()
    experiment = resolve(experiment)
    check(experiment)
    run_folder = _workdir(workdir)
    with occupied(run_folder, experiment):
        for phase in PHASES:
            named(phase)(experiment=experiment, workdir=run_folder, force=force)
        return manifest.read_json(run_folder.report.file("report.json"))


def named(phase: str) -> Callable[..., None]:
    """The phase's `run`; of several hosts the first does what is not shared, and the others wait."""
    run_phase = importlib.import_module(f"kd_jax.phases.{phase.replace('-', '_')}").run
    if phase in OF_ONE_HOST:
        return lambda **options: hosts.run_on_main(lambda: run_phase(**options))
    return run_phase


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
    if words.command == "export":
        if words.to is None:
            raise KdError("--to: missing; wanted the folder to write, such as exported/student_kd")
        workdir = _workdir(words.workdir)
        given = {"experiment": recall(workdir), "workdir": workdir, "to": words.to}
        given |= {"model": words.model, "format": words.format, "int8": words.int8}
        yield [("export", given)]
        return
    if words.command == "import-logprobs":
        workdir = _workdir(words.workdir)
        given = {"experiment": recall(workdir), "workdir": workdir, "files": words.files, "source": _source(words)}
        with workdir.lock():
            yield [("import-logprobs", given | {"force": words.force})]
        return
    if words.command == "new":
        yield [("new", {"path": words.config, "task": words.task, "family": words.family, "train": words.train})]
        return
    _check_options(words)
    if words.host:
        _join(words)
    if _scaled(words):
        backends.simulate_devices(words.devices)  # before anything asks JAX for its devices
    experiment = apply_overrides(words.config, words.overrides)
    if words.command == "plan":
        given = {"experiment": experiment, "workdir": words.workdir and _workdir(words.workdir)}
        options = ("devices", "kind", "only") if _scaled(words) else ()
        yield [("plan", given | {option: vars(words)[option] for option in options})]
    elif words.command == "shrink":
        workdir = _workdir(words.workdir)
        with workdir.lock():  # its students need not be those that are trained there: experiment.json stays as it is
            yield [("shrink", {"experiment": experiment, "workdir": workdir})]
    elif words.command == "ablate":
        with _ablation(experiment, words) as given:
            yield [("ablate", given)]
    else:
        workdir = _workdir(words.workdir)
        given = {"experiment": experiment, "workdir": workdir, "force": words.force}
        given |= {option: vars(words)[option] for option in ("only", "writer") if vars(words)[option]}
        with occupied(workdir, experiment, words.writer):
            own = {phase: {"profile": words.profile, "metrics": words.metrics} for phase in TRAINING}
            own["prepare"] = {"workers": _workers(words, workdir)}
            yield [(phase, given | own[phase] if phase in own else given) for phase in words.phases]


def _check_options(words: argparse.Namespace) -> None:
    """Raises KdError for an option that goes with other commands, or a writer that is not there."""
    if words.only and words.command != "student" and not _scaled(words):
        raise KdError("--only: goes with the commands student and plan --devices alone")
    if words.writer and words.command != "cache":
        raise KdError("--writer: goes with the command cache alone")
    for option in ("processes", "beam_runner"):
        if vars(words)[option] and words.command not in ("run", "prepare"):
            raise KdError(f"--{option.replace('_', '-')}: goes with the commands run and prepare alone")
    if words.processes and words.beam_runner:
        raise KdError("--processes: who does the work is Beam's to say where there is --beam-runner; leave it out")
    if words.beam_options and not words.beam_runner:
        raise KdError("--beam-options: goes with --beam-runner, such as --beam-runner DirectRunner")
    for option in ("profile", "metrics"):
        if vars(words)[option] and words.command not in ("run", *TRAINING):
            raise KdError(f"--{option}: goes with the commands run, {', '.join(TRAINING)} alone")
        if vars(words)[option] and words.workdir and files.in_bucket(words.workdir):
            raise KdError(f"--{option}: {words.workdir} is in a bucket; wanted a --workdir on a disk")
    for option in ("host", "coordinator"):
        if vars(words)[option] and words.command not in ("run", *PHASES):
            raise KdError(f"--{option}: goes with the commands run, {', '.join(PHASES)} alone")
    if words.host and words.workdir and files.in_s3(words.workdir):
        raise KdError(f"--host: {words.workdir} is in s3://, where one host works alone; wanted gs:// or a disk")
    for option in ("coordinator", "patience"):
        if vars(words)[option] and not words.host:
            raise KdError(f"--{option}: goes with --host, which process this is, such as --host 0/4")
    metric_writers.check(words.metrics)
    if words.command == "plan" and words.force:
        raise KdError("--force: plan keeps nothing that could be done again; leave it out")
    if words.command == "shrink" and words.force:
        raise KdError("--force: shrink measures anew each time; leave it out")


def _workers(words: argparse.Namespace, workdir: Workdir) -> Workers:
    """Who prepares the data; raises KdError where it is Beam, and it cannot."""
    if not words.beam_runner:
        return Processes(words.processes or 1)
    beam = BeamRunner(words.beam_runner, words.beam_options, workdir.data.path / "beam")
    beam.check()
    return beam


def _scaled(words: argparse.Namespace) -> bool:
    """Whether a plan is of many devices; raises KdError for an option that lacks the other."""
    if words.command != "plan" or (words.devices is None and not words.kind):
        return False
    if words.devices is None or words.devices < 1:
        raise KdError(f"--devices: {words.devices}; wanted how many there would be, such as 256")
    chips.find_chip(words.kind)
    return True


def _join(words: argparse.Namespace) -> None:
    """This process becomes one of several hosts; raises KdError where it is not said where they meet."""
    if words.writer:
        raise KdError("--writer: several hosts share the cache's work by themselves; leave it out")
    place = None if words.host == "auto" else words.host
    if place is not None and not words.coordinator:
        raise KdError("--coordinator: missing; wanted ADDRESS:PORT of the first host, such as 10.0.0.1:1234")
    hosts.join(place, words.coordinator, words.patience or hosts.PATIENCE)
    preemption.install_handler()


@contextlib.contextmanager
def _ablation(experiment: Experiment, words: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What `ablate` is given; the workdir and those of all seeds are this process's until the block ends."""
    metrics = chosen_metrics(experiment.task, words.metric)
    experiment, workdir, seeds = with_controls(experiment), _workdir(words.workdir), _seeds(words)
    with contextlib.ExitStack() as stack:
        stack.enter_context(workdir.lock())
        for seed in seeds:
            stack.enter_context(occupied(workdir.seed(seed), dataclasses.replace(experiment, seed=seed)))
        given = {"experiment": experiment, "workdir": workdir, "force": words.force}
        yield given | {"seeds": seeds, "metrics": metrics}


def _source(words: argparse.Namespace) -> LogprobSource:
    """How the files came to be; raises KdError where that is not stated."""
    if not words.files:
        raise KdError("import-logprobs: no files; wanted those with the stored log-probabilities")
    needed = {
        "format": "vllm, sglang, distillkit or maxtext",
        "temperature": "what their softmax was taken at, such as 1",
    }
    for field, wanted in (needed | {"mode": "raw, or processed for what a sampler made of them"}).items():
        if field not in words.changes:
            raise KdError(f"--{field}: missing, and the files do not say it; wanted {wanted}")
    return LogprobSource(**words.changes)


def _seeds(words: argparse.Namespace) -> tuple[int, ...]:
    """Different whole numbers; raises KdError for others."""
    given = words.seeds
    if not given:
        raise KdError("--seeds: missing; wanted whole numbers, such as --seeds 0 1 2")
    if "--seed" in words.overrides:
        raise KdError("--seed: ablate takes its seeds from --seeds; leave it out")
    for word in given:
        if not re.fullmatch(r"[0-9]+", word) or int(word) >= 2**32:
            raise KdError(f"--seeds {word}: wanted whole numbers from 0 to {2**32 - 1}, such as --seeds 0 1 2")
    seeds = tuple(map(int, given))
    if len(set(seeds)) < len(seeds):
        raise KdError(f"--seeds {' '.join(given)}: one of them twice; wanted each once")
    return seeds


@contextlib.contextmanager
def occupied(workdir: Workdir, experiment: Experiment, writer: tuple[int, int] | None = None) -> Iterator[None]:
    """The workdir is this process's until the block ends; it remembers the experiment.

    Raises:
      KdError: if another process works there, or its experiment.json is not as kd_jax writes it.
    """
    with contextlib.ExitStack() as stack:
        hosts.run_on_main(lambda: _occupy(stack, workdir, experiment, writer))
        yield
        # Only now: a configuration that a phase refused must not take the place of the one that made what is there.
        if hosts.is_main_process():
            remember(workdir, experiment)


def _occupy(
    stack: contextlib.ExitStack, workdir: Workdir, experiment: Experiment, writer: tuple[int, int] | None
) -> None:
    stack.enter_context(workdir.lock(writer))
    if workdir.config.exists():
        recall(workdir)  # a file of somebody else's is refused, not written over
    else:
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


def _workdir(given: str | Path | None) -> Workdir:
    if given is None:
        raise KdError("--workdir: missing; wanted the folder to keep the run in, such as runs/quickstart")
    path = files.as_path(given)
    if path.exists() and not path.is_dir():
        raise KdError(f"--workdir {path}: not a folder; take another")
    return Workdir(path)


def share_compiled_programs() -> None:
    """Compiled programs outlive the process, so that phases and reruns share them."""
    folder = os.environ["KD_JAX_CACHE"] if "KD_JAX_CACHE" in os.environ else "~/.cache/kd_jax/xla"
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
