"""The commands of `kd-jax`: one dataclass each, with an option for each field.

This module stays importable without JAX, so that `--help` is quick. Work is imported when a command runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kd_jax.errors import KdError
from kd_jax.runtime import hosts, preemption

if TYPE_CHECKING:
    from kd_jax.artifacts.workdir import Workdir
    from kd_jax.batches.workers import Workers
    from kd_jax.experiment import Experiment

Call = Callable[[], object]

Config = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="CONFIG", help="A Python file that defines `experiment`."),
]
RunFolder = Annotated[
    str,
    tyro.conf.arg(metavar="DIR", help="Folder or bucket URL of the run. The same command resumes a stopped run."),
]
Force = Annotated[bool, tyro.conf.arg(help="Redo finished work from the start.")]
ModelName = Annotated[
    str, tyro.conf.arg(metavar="NAME", help="`teacher` or a student's name; empty for the distilled student.")
]


def parse_share(option: str, text: str) -> tuple[int, int] | None:
    """Parse NUMBER/COUNT, one share of a work that several processes do; "" gives None.

    Raises:
      KdError: if the text has another form, or NUMBER is not below COUNT.

    Examples:
      >>> parse_share("writer", "0/4")
      (0, 4)
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise KdError(
            f"--{option}: expected NUMBER/COUNT with NUMBER below COUNT, got {text}. Example: --{option} 0/4."
        )
    return int(match[1]), int(match[2])


@dataclasses.dataclass(frozen=True)
class HostOptions:
    """Several processes (of a pod, SLURM, MPI) that work on one run. Each runs the same command."""

    host: Annotated[str, tyro.conf.arg(metavar="NUMBER/COUNT|auto")] = ""
    """This process's number, such as 0/4; `auto` where the pod, SLURM or MPI says it."""
    coordinator: Annotated[str, tyro.conf.arg(metavar="ADDRESS:PORT")] = ""
    """Where process 0 listens; needed unless --host auto."""
    patience: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = hosts.PATIENCE
    """Seconds without progress after which all processes end."""

    def __post_init__(self) -> None:
        """Check the options against each other.

        Raises:
          KdError: if an option is missing or has no use.
        """
        numbered = self.host not in ("", "auto")
        if numbered:
            parse_share("host", self.host)
        if numbered and not self.coordinator:
            raise KdError("--coordinator: expected ADDRESS:PORT of process 0, got nothing. Example: 10.0.0.1:1234.")
        if not self.host and (self.coordinator or self.patience != hosts.PATIENCE):
            option = "coordinator" if self.coordinator else "patience"
            raise KdError(f"--{option}: expected --host beside it, got none. Add this process's number: --host 0/4.")

    def join(self, workdir: str) -> None:
        """Join the other processes, if there are several.

        Raises:
          KdError: if the processes do not meet, or the workdir is in s3://.
        """
        from kd_jax.artifacts import files

        if not self.host:
            return
        if files.in_s3(workdir):
            raise KdError(
                f"--host: expected a workdir in gs:// or on a disk, got {workdir}. In s3:// one host works alone."
            )
        hosts.join(None if self.host == "auto" else parse_share("host", self.host), self.coordinator, self.patience)
        preemption.watch()


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """Processes that prepare the data. They change no byte of it."""

    processes: int = 1
    """Processes of this machine."""
    beam_runner: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Apache Beam runner, such as DirectRunner or DataflowRunner."""
    beam_options: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    """The runner's own options, as one word: --beam-options="--region=europe-west1"."""

    def __post_init__(self) -> None:
        """Check the options' ranges and against each other.

        Raises:
          KdError: if an option is out of its range or has no use.
        """
        if not 1 <= self.processes <= 999:
            raise KdError(f"--processes: expected an integer in [1, 999], got {self.processes}.")
        if self.processes > 1 and self.beam_runner:
            raise KdError(
                "--processes: expected no --beam-runner beside it. Beam starts its own workers: leave one out."
            )
        if self.beam_options and not self.beam_runner:
            raise KdError("--beam-options: expected --beam-runner beside it, got none. Add --beam-runner DirectRunner.")

    def workers(self, workdir: Workdir) -> Workers:
        """Return the workers; files that Beam's exchange lie in the workdir.

        Raises:
          KdError: if Beam is not installed or has no such runner.
        """
        from kd_jax.batches.beam_runner import BeamRunner
        from kd_jax.batches.workers import Processes

        if not self.beam_runner:
            return Processes(self.processes)
        beam = BeamRunner(self.beam_runner, self.beam_options, workdir.data.path / "beam")
        beam.check()
        return beam


@dataclasses.dataclass(frozen=True)
class MonitoringOptions:
    """What training writes beside the model. It changes no parameter."""

    profile: Annotated[str, tyro.conf.arg(metavar="FIRST:LAST")] = ""
    """Training steps to trace for xprof, such as 10:15."""
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Also log metrics to tensorboard, wandb or mlflow."""

    def __post_init__(self) -> None:
        """Check the form of --profile.

        Raises:
          KdError: if it is not FIRST:LAST.
        """
        _ = self.steps

    @property
    def steps(self) -> tuple[int, int] | None:
        """First and last step to trace; None for no trace."""
        if not self.profile:
            return None
        match = re.fullmatch(r"(\d+):(\d+)", self.profile)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise KdError(f"--profile: expected FIRST:LAST, training steps from 1, got {self.profile}. Example: 10:15.")
        return int(match[1]), int(match[2])

    def check(self, workdir: str) -> None:
        """Check that the metric writers are installed and that the workdir is on a disk.

        Raises:
          KdError: if not.
        """
        from kd_jax.artifacts import files, metric_writers

        metric_writers.check(self.metrics)
        for option in ("profile", "metrics"):
            if getattr(self, option) and files.in_bucket(workdir):
                raise KdError(f"--{option}: expected a --workdir on a disk, got {workdir}.")


class Command:
    """A command of the command line; its subclasses are dataclasses of options."""

    takes_overrides = False  # whether `--any.field VALUE` replaces fields of the experiment
    handles_sigterm = True  # whether SIGTERM leaves a checkpoint; else it ends the process at once

    @contextlib.contextmanager
    def open(self, overrides: Sequence[str]) -> Iterator[list[Call]]:
        """Hold what the command needs (workdir lock, other hosts) for the block, and yield its calls in order.

        Args:
          overrides: words that replace fields of the experiment.

        Raises:
          KdError: if the options or the experiment are invalid, or another process works in the workdir.
        """
        raise NotImplementedError
        yield []


@dataclasses.dataclass(frozen=True)
class PhaseCommand(Command):
    """A command that runs phases in a workdir."""

    config: Config
    workdir: RunFolder
    hosts: HostOptions = HostOptions()

    takes_overrides = True

    @contextlib.contextmanager
    def open(self, overrides: Sequence[str]) -> Iterator[list[Call]]:
        """Hold the workdir's lock for the block, and yield the phases' calls."""
        from kd_jax.cli.overrides import apply_overrides
        from kd_jax.phases.workdirs import lock_workdir, open_workdir

        self.check()
        self.hosts.join(self.workdir)
        experiment = apply_overrides(self.config, overrides)
        workdir = open_workdir(self.workdir)
        with lock_workdir(workdir, experiment, self.share):
            yield self.calls(experiment, workdir)

    @property
    def share(self) -> tuple[int, int] | None:
        """(number, count) of one of several processes that share the command's work."""
        return None

    def check(self) -> None:
        """Check the options before the experiment is read.

        Raises:
          KdError: if an option is out of its range.
        """

    def calls(self, experiment: Experiment, workdir: Workdir) -> list[Call]:
        """Return the calls of the phases, in order."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Run(PhaseCommand):
    """Run all phases: prepare, teacher, cache, student, evaluate, report.

    A finished phase is skipped while its inputs are the same, and refused when they are not.
    """

    force: Force = False
    workers: WorkerOptions = WorkerOptions()
    monitoring: MonitoringOptions = MonitoringOptions()

    def check(self) -> None:
        """Check the options before the experiment is read."""
        self.monitoring.check(self.workdir)

    def calls(self, experiment: Experiment, workdir: Workdir) -> list[Call]:
        """Return the one call that runs all phases."""
        from kd_jax.phases import run

        steps, metrics = self.monitoring.steps, self.monitoring.metrics
        workers = self.workers.workers(workdir)
        return [functools.partial(run.run, experiment, workdir, self.force, workers, profile=steps, metrics=metrics)]


@dataclasses.dataclass(frozen=True)
class Prepare(PhaseCommand):
    """Fetch the texts, train the tokenizer, encode every split."""

    force: Force = False
    workers: WorkerOptions = WorkerOptions()

    def calls(self, experiment: Experiment, workdir: Workdir) -> list[Call]:
        """Return the phase's call, which the main process makes for all."""
        from kd_jax.phases import prepare

        workers = self.workers.workers(workdir)
        call = functools.partial(prepare.run, experiment, workdir, self.force, workers)
        return [functools.partial(hosts.run_on_main, call)]


@dataclasses.dataclass(frozen=True)
class Teacher(PhaseCommand):
    """Train the teacher on the data alone."""

    force: Force = False
    monitoring: MonitoringOptions = MonitoringOptions()

    def check(self) -> None:
        """Check the options before the experiment is read."""
        self.monitoring.check(self.workdir)

    def calls(self, experiment: Experiment, workdir: Workdir) -> list[Call]:
        """Return the phase's call."""
        from kd_jax.phases import teacher

        steps, metrics = self.monitoring.steps, self.monitoring.metrics
        return [functools.partial(teacher.run, experiment, workdir, self.force, profile=steps, metrics=metrics)]


@dataclasses.dataclass(frozen=True)
class Cache(PhaseCommand):
    """Write the teacher's signals for every training token to disk."""

    force: Force = False
    writer: Annotated[str, tyro.conf.arg(metavar="NUMBER/COUNT")] = ""
    """Write one share of the cache, such as 0/4; other processes or machines write the others."""

    def __post_init__(self) -> None:
        """Check --writer.

        Raises:
          KdError: if it is not NUMBER/COUNT, or beside --host.
        """
        if parse_share("writer", self.writer) and self.hosts.host:
            raise KdError(
                "--writer: expected no --host beside it. Hosts share the cache's work by themselves: leave it out."
            )

    @property
    def share(self) -> tuple[int, int] | None:
        """(number, count) of this writer."""
        return parse_share("writer", self.writer)

    def calls(self, experiment: Experiment, workdir: Workdir) -> list[Call]:
        """Return the phase's call."""
        from kd_jax.phases import cache

        return [functools.partial(cache.run, experiment, workdir, self.force, writer=self.share)]


@dataclasses.dataclass(frozen=True)
class Student(PhaseCommand):
    """Train the students from the teacher's cache."""

    force: Force = False
    only: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Train this student alone."""
    monitoring: MonitoringOptions = MonitoringOptions()

    def check(self) -> None:
        """Check the options before the experiment is read."""
        self.monitoring.check(self.workdir)

    def calls(self, experiment: Experiment, workdir: Workdir) -> list[Call]:
        """Return the phase's call."""
        from kd_jax.phases import student

        steps, metrics = self.monitoring.steps, self.monitoring.metrics
        return [
            functools.partial(
                student.run, experiment, workdir, self.force, only=self.only, profile=steps, metrics=metrics
            )
        ]


@dataclasses.dataclass(frozen=True)
class Evaluate(PhaseCommand):
    """Measure quality, closeness to the teacher and speed of every model."""

    force: Force = False

    def calls(self, experiment: Experiment, workdir: Workdir) -> list[Call]:
        """Return the phase's call."""
        from kd_jax.phases import evaluate

        return [functools.partial(evaluate.run, experiment, workdir, self.force)]


@dataclasses.dataclass(frozen=True)
class Report(PhaseCommand):
    """Write report.json, report.md and report.html: what distillation gained."""

    def calls(self, experiment: Experiment, workdir: Workdir) -> list[Call]:
        """Return the phase's call, which the main process makes for all."""
        from kd_jax.phases import report

        return [functools.partial(hosts.run_on_main, functools.partial(report.run, experiment, workdir))]


@dataclasses.dataclass(frozen=True)
class Plan(Command):
    """Estimate what a cache costs and keeps, or whether training fits many devices.

    With --devices and --kind: one training step of each model on that many chips, compiled without any of them, with
    its memory and the limit that binds it. Otherwise: cost of each signal's cache, and of a student's step.
    """

    config: Config
    workdir: Annotated[
        str, tyro.conf.arg(metavar="DIR", help="A run whose data and teacher are used; not changed.")
    ] = ""
    devices: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Number of devices to plan for; 0 plans the cache."""
    kind: Annotated[str, tyro.conf.arg(metavar="KIND")] = ""
    """Their kind: tpu-v5e, tpu-v5p, tpu-v6e or h100."""
    only: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Plan this model alone (with --devices)."""

    takes_overrides = True

    def __post_init__(self) -> None:
        """Check the options against each other.

        Raises:
          KdError: if one of --devices and --kind is missing, or --only has no use.
        """
        if self.devices < 0 or (self.kind and not self.devices):
            raise KdError(f"--devices: expected the number of devices, at least 1, got {self.devices}. Example: 256.")
        if self.only and not self.devices:
            raise KdError("--only: expected --devices and --kind beside it, got none. Add them or leave it out.")

    @contextlib.contextmanager
    def open(self, overrides: Sequence[str]) -> Iterator[list[Call]]:
        """Yield the plan's call; simulate the devices first, before JAX looks for any."""
        from kd_jax.cli.overrides import apply_overrides
        from kd_jax.phases import plan
        from kd_jax.phases.workdirs import open_workdir
        from kd_jax.runtime import backends, chips

        if self.devices:
            chips.find_chip(self.kind)
            backends.simulate_devices(self.devices)
        experiment = apply_overrides(self.config, overrides)
        workdir = open_workdir(self.workdir) if self.workdir else None
        yield [functools.partial(plan.run, experiment, workdir, self.devices, self.kind, self.only)]


@dataclasses.dataclass(frozen=True)
class Shrink(Command):
    """Compare what students keep of the trained teacher's layers and widths, before any training."""

    config: Config
    workdir: RunFolder

    takes_overrides = True

    @contextlib.contextmanager
    def open(self, overrides: Sequence[str]) -> Iterator[list[Call]]:
        """Hold the workdir's lock for the block, and yield the call.

        experiment.json stays as it is, since the students need not be those of the run.
        """
        from kd_jax.cli.overrides import apply_overrides
        from kd_jax.phases import shrink
        from kd_jax.phases.workdirs import open_workdir

        experiment, workdir = apply_overrides(self.config, overrides), open_workdir(self.workdir)
        with workdir.lock():
            yield [functools.partial(shrink.run, experiment, workdir)]


@dataclasses.dataclass(frozen=True)
class Ablate(Command):
    """Compare students with their controls over several seeds, with intervals and verdicts."""

    config: Config
    workdir: RunFolder
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SEED ...")]
    """Seeds of the runs, such as 0 1 2."""
    force: Annotated[bool, tyro.conf.arg(help="Measure again; trained models stay.")] = False
    metric: Annotated[str, tyro.conf.arg(metavar="NAME|all")] = ""
    """Metric that decides; empty for the task's first."""

    takes_overrides = True

    def __post_init__(self) -> None:
        """Check the seeds.

        Raises:
          KdError: if one is out of its range or given twice, or there are none.
        """
        if not self.seeds or not all(0 <= seed < 2**32 for seed in self.seeds):
            shown = " ".join(map(str, self.seeds)) or "none"
            raise KdError(f"--seeds: expected integers in [0, {2**32 - 1}], got {shown}. Example: --seeds 0 1 2.")
        if len(set(self.seeds)) < len(self.seeds):
            raise KdError(
                f"--seeds: expected each seed once, got {' '.join(map(str, self.seeds))}. Leave out the second."
            )

    @contextlib.contextmanager
    def open(self, overrides: Sequence[str]) -> Iterator[list[Call]]:
        """Hold the locks of the ablation's and of all seeds' workdirs for the block, and yield the call."""
        from kd_jax.cli.overrides import apply_overrides
        from kd_jax.phases import ablate
        from kd_jax.phases.workdirs import lock_workdir, open_workdir
        from kd_jax.reporting.ablation import select_metrics
        from kd_jax.reporting.controls import with_controls

        if "--seed" in overrides:
            raise KdError("--seed: expected --seeds in its place, since an ablation has several. Leave it out.")
        experiment = apply_overrides(self.config, overrides)
        metrics = select_metrics(experiment.task, self.metric)
        experiment, workdir = with_controls(experiment), open_workdir(self.workdir)
        with contextlib.ExitStack() as locks:
            locks.enter_context(workdir.lock())
            for seed in self.seeds:
                of_seed = dataclasses.replace(experiment, seed=seed)
                locks.enter_context(lock_workdir(workdir.seed(seed), of_seed))
            yield [functools.partial(ablate.run, experiment, workdir, self.seeds, metrics, self.force)]


@dataclasses.dataclass(frozen=True)
class Generate(Command):
    """Answer standard input with a trained model, line by line.

    Options that are not set keep the values of the experiment's task. Without --beam the model decodes greedily, or
    samples where a temperature is set.
    """

    workdir: RunFolder
    model: ModelName = ""
    beam: int = 1
    """Width of beam search; 1 for none."""
    length: Annotated[int | None, tyro.conf.arg(metavar="TOKENS")] = None
    """Maximum length in tokens."""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="T")] = None
    """Sampling temperature; 0 for greedy decoding."""
    top_k: Annotated[int | None, tyro.conf.arg(metavar="K")] = None
    """Sample among the K most probable tokens; 0 for all."""
    top_p: Annotated[float | None, tyro.conf.arg(metavar="P")] = None
    """Sample among the most probable tokens that hold probability P together."""
    min_p: Annotated[float | None, tyro.conf.arg(metavar="P")] = None
    """Sample among tokens with at least P times the highest probability."""
    repetition_penalty: Annotated[float | None, tyro.conf.arg(metavar="R")] = None
    """Divide the logits of tokens that were written before; 1 for none."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Seed of the sampling."""

    handles_sigterm = False

    @contextlib.contextmanager
    def open(self, overrides: Sequence[str]) -> Iterator[list[Call]]:
        """Yield the call."""
        from kd_jax.phases import generate
        from kd_jax.phases.workdirs import open_workdir, read_experiment

        workdir = open_workdir(self.workdir)
        experiment = read_experiment(workdir)
        decoding = generate.change_decoding(
            experiment.task.decoding,
            beam=self.beam,
            length=self.length,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )
        yield [functools.partial(generate.run, experiment, workdir, self.model, decoding)]


@dataclasses.dataclass(frozen=True)
class Export(Command):
    """Write a trained model as a folder for transformers, or for JAX alone."""

    workdir: RunFolder
    to: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder to write; it must not exist."""
    model: ModelName = ""
    format: Literal["transformers", "jax"] = "transformers"
    """Files that transformers loads, or programs that JAX runs without kd_jax."""
    int8: Annotated[bool, tyro.conf.arg(help="Quantize the weights to 8 bits (--format jax alone).")] = False

    handles_sigterm = False

    @contextlib.contextmanager
    def open(self, overrides: Sequence[str]) -> Iterator[list[Call]]:
        """Yield the call."""
        from pathlib import Path

        from kd_jax.phases import export
        from kd_jax.phases.workdirs import open_workdir, read_experiment

        workdir = open_workdir(self.workdir)
        experiment = read_experiment(workdir)
        yield [functools.partial(export.run, experiment, workdir, Path(self.to), self.model, self.format, self.int8)]


@dataclasses.dataclass(frozen=True)
class ImportLogprobs(Command):
    """Import log-probabilities of a teacher elsewhere, in the place of `teacher` and `cache`.

    Run it after `prepare`, and then `student`, `evaluate` and `report`.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE ...")]
    """Files with the log-probabilities."""
    workdir: RunFolder
    format: Literal["vllm", "sglang", "distillkit", "maxtext"]
    """Format of the files."""
    temperature: Annotated[float, tyro.conf.arg(metavar="T")]
    """Temperature of the softmax that they were taken from, such as 1."""
    mode: Literal["raw", "processed"]
    """The model's own distribution, or what a sampler made of it."""
    sequence: Literal["whole", "completion"] = "whole"
    """Token ids of the files: prompt and completion, or the completion alone where an encoder read the prompt."""
    missing: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0
    """Share of the targets that the files may lack."""
    sum_error: Annotated[float, tyro.conf.arg(metavar="E")] = 1e-3
    """How much above one the probabilities of a position may sum to."""
    force: Force = False

    handles_sigterm = False

    def __post_init__(self) -> None:
        """Check that there are files.

        Raises:
          KdError: if not.
        """
        if not self.files:
            raise KdError("import-logprobs: expected files with log-probabilities, got none. Name them: FILE ...")

    @contextlib.contextmanager
    def open(self, overrides: Sequence[str]) -> Iterator[list[Call]]:
        """Hold the workdir's lock for the block, and yield the call."""
        from pathlib import Path

        from kd_jax.phases import import_logprobs
        from kd_jax.phases.workdirs import open_workdir, read_experiment
        from kd_jax.teaching.imported.base import LogprobSource

        workdir = open_workdir(self.workdir)
        experiment, files = read_experiment(workdir), [Path(file) for file in self.files]
        source = LogprobSource(
            format=self.format,
            temperature=self.temperature,
            mode=self.mode,
            sequence=self.sequence,
            missing=self.missing,
            sum_error=self.sum_error,
        )
        with workdir.lock():
            yield [functools.partial(import_logprobs.run, experiment, workdir, files, source, self.force)]


@dataclasses.dataclass(frozen=True)
class New(Command):
    """Write a config to start from, for JSON lines of your own."""

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG", help="Python file to write.")]
    task: Literal["translation", "summarization", "instructions", "generation"]
    """What the models are for."""
    family: Literal["encoder_decoder", "decoder_only"]
    """Architecture of teacher and students; `generation` is decoder_only."""
    train: Annotated[str, tyro.conf.arg(metavar="FILE")] = "train.jsonl"
    """JSON lines with the training examples; their field names are taken over."""

    handles_sigterm = False

    @contextlib.contextmanager
    def open(self, overrides: Sequence[str]) -> Iterator[list[Call]]:
        """Yield the call."""
        from kd_jax.phases import new

        yield [functools.partial(new.run, self.config, self.task, self.family, self.train)]


COMMANDS: dict[str, type[Command]] = {
    "run": Run,
    "prepare": Prepare,
    "teacher": Teacher,
    "cache": Cache,
    "student": Student,
    "evaluate": Evaluate,
    "report": Report,
    "new": New,
    "plan": Plan,
    "shrink": Shrink,
    "ablate": Ablate,
    "import-logprobs": ImportLogprobs,
    "generate": Generate,
    "export": Export,
}
