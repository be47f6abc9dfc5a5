"""The commands of `kd-jax`: one dataclass each, with an option for each field.

This module imports no JAX, so that `--help` is quick: a command imports its phase when it runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from kd_jax.errors import KdError
from kd_jax.runtime import hosts, preemption, rendezvous

if TYPE_CHECKING:
    from kd_jax.artifacts.workdir import Workdir
    from kd_jax.batches.workers import Workers
    from kd_jax.experiment import ResolvedExperiment

MAX_DEVICES = 10_000  # that `plan` simulates
Call = Callable[[], object]
Config = Annotated[str, Positional, arg(metavar="CONFIG", help="Python file that defines `experiment`.")]
Folder = Annotated[
    str, arg(metavar="DIR", help="Folder or bucket URL of the run. The same command resumes a stopped run.")
]
Model = Annotated[str, arg(metavar="NAME", help="`teacher` or a student; empty for the distilled student.")]
Force = Annotated[bool, arg(help="Redo finished work from the start.")]
Share = Annotated[str, arg(metavar="NUMBER/COUNT")]
RunConfig = Annotated[
    str, arg(metavar="CONFIG", help="Python file of the run, if its task, tokenizer or model is of a class of yours.")
]


@dataclass(frozen=True)
class HostOptions:
    """Several processes that work on one run (of a pod, SLURM, MPI). Each runs the same command."""

    host: Annotated[str, arg(metavar="NUMBER/COUNT|auto")] = ""
    """Number of this process, such as 0/4; `auto` if the pod, SLURM or MPI says it."""
    coordinator: Annotated[str, arg(metavar="ADDRESS:PORT")] = ""
    """Where process 0 listens; needed unless --host auto."""
    patience: Annotated[float, arg(metavar="SECONDS")] = hosts.PATIENCE
    """Seconds without progress after which all processes end."""
    wait: Annotated[float | None, arg(metavar="SECONDS")] = None
    """Seconds to wait for the other processes at the start; None for 20, or for 300 with --host auto."""

    def __post_init__(self) -> None:
        """Raise KdError for options that do not fit together."""
        if self.host not in ("", "auto"):
            parse_share("host", self.host)
            if not self.coordinator:
                raise KdError("--coordinator: expected ADDRESS:PORT of process 0, got none. Example: 10.0.0.1:1234.")
            rendezvous.parse_address(self.coordinator)
        for option, seconds in {"patience": self.patience, "wait": self.wait}.items():
            if seconds is not None and not 1 <= seconds <= 10**6:
                raise KdError(f"--{option}: expected 1 to 1000000 seconds, got {seconds}.")
        given = {"coordinator": self.coordinator, "patience": self.patience != hosts.PATIENCE, "wait": self.wait}
        if not self.host and any(given.values()):
            option = next(name for name, value in given.items() if value)
            raise KdError(f"--{option}: expected --host beside it, got none. Add this process's number: --host 0/4.")

    def join(self, workdir: str) -> None:
        """Join the other processes, if there are any."""
        from kd_jax.artifacts import files

        if not self.host:
            return
        if files.in_s3(files.as_path(workdir)):
            raise KdError(f"--host: expected a workdir in gs:// or on a disk, got {workdir}. In s3:// one host works.")
        process = None if self.host == "auto" else parse_share("host", self.host)
        hosts.join(process, self.coordinator, self.patience, self.wait, preemption.poll)
        preemption.install_handler()


@dataclass(frozen=True)
class WorkerOptions:
    """Processes that prepare the data. Their number changes no byte of it."""

    processes: int = 1
    """Processes on this machine."""
    beam_runner: Annotated[str, arg(metavar="NAME")] = ""
    """Apache Beam runner to use instead, such as DirectRunner or DataflowRunner."""
    beam_options: Annotated[str, arg(metavar="OPTIONS")] = ""
    """The runner's own options in one word: --beam-options="--region=europe-west1"."""

    def __post_init__(self) -> None:
        """Raise KdError for options out of their range, or that do not fit together."""
        if not 1 <= self.processes <= 999:
            raise KdError(f"--processes: expected an integer in [1, 999], got {self.processes}.")
        if self.processes > 1 and self.beam_runner:
            raise KdError("--processes: expected no --beam-runner beside it, since Beam has its own. Leave one out.")
        if self.beam_options and not self.beam_runner:
            raise KdError("--beam-options: expected --beam-runner beside it, got none. Add --beam-runner DirectRunner.")

    def workers(self, workdir: Workdir) -> Workers:
        """Return the workers; Beam's exchange files in the workdir."""
        from kd_jax.batches.beam_runner import BeamRunner
        from kd_jax.batches.workers import Processes

        if not self.beam_runner:
            return Processes(self.processes)
        beam = BeamRunner(self.beam_runner, self.beam_options, workdir.data.path / "beam")
        beam.check()
        return beam


@dataclass(frozen=True)
class MonitoringOptions:
    """What training writes beside the model. It changes no parameter."""

    profile: Annotated[str, arg(metavar="FIRST:LAST")] = ""
    """Training steps to trace for xprof, such as 10:15."""
    metrics: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Also log metrics to tensorboard, wandb or mlflow."""

    def __post_init__(self) -> None:
        """Raise KdError for a --profile of another form."""
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
        """Raise KdError for metric writers that are not installed, or files beside a workdir in a bucket."""
        from kd_jax.artifacts import files, metric_writers

        metric_writers.check(self.metrics)
        for option in ("profile", "metrics"):
            if getattr(self, option) and files.in_bucket(workdir):
                raise KdError(f"--{option}: expected a --workdir on a disk, got {workdir}.")


class Command:
    """A command of the command line. Its subclasses are dataclasses of options."""

    takes_overrides = False  # whether `--any.field VALUE` replaces fields of the experiment
    handles_sigterm = True  # whether SIGTERM leaves a checkpoint; else it ends the process at once

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the call that does the work; `locks` holds the workdir's lock until it is done."""
        raise NotImplementedError


@dataclass(frozen=True)
class PhaseCommand(Command):
    """A command that runs a phase in a workdir; several hosts may share its work."""

    config: Config
    workdir: Folder
    hosts: HostOptions = HostOptions()

    takes_overrides = True

    def open(
        self,
        overrides: Sequence[str],
        locks: ExitStack,
        writer: tuple[int, int] | None = None,
        force: Collection[str] = (),
        only: str = "",
    ) -> tuple[ResolvedExperiment, Workdir]:
        """Join the other hosts, load the experiment, lock the workdir and compare it; see `lock_workdir`."""
        from kd_jax.cli.overrides import resolve_overrides
        from kd_jax.config import flatten
        from kd_jax.phases.check import check
        from kd_jax.phases.workdirs import lock_workdir, open_workdir

        self.hosts.join(self.workdir)
        experiment = resolve_overrides(self.config, overrides)
        if hosts.process().count > 1:
            text = hashlib.blake2b(Path(self.config).read_bytes(), digest_size=4).hexdigest()
            options = {"command": type(self).__name__, "--force": sorted(force), "--only": only}
            hosts.check_same({**options, **flatten(experiment), "CONFIG": f"a text with the digest {text}"})
        check(experiment)
        workdir = open_workdir(self.workdir)
        locks.enter_context(lock_workdir(workdir, experiment, writer, force, only))
        return experiment, workdir


@dataclass(frozen=True)
class Run(PhaseCommand):
    """Run all phases: prepare, teacher, cache, student, evaluate, report.

    A finished phase is skipped while its inputs are the same, and refused when they are not.
    """

    force: Force = False
    workers: WorkerOptions = WorkerOptions()
    monitoring: MonitoringOptions = MonitoringOptions()

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the call of all phases."""
        from kd_jax.phases import run
        from kd_jax.provenance import PHASES

        self.monitoring.check(self.workdir)
        experiment, workdir = self.open(overrides, locks, force=PHASES if self.force else ())
        workers, monitoring = self.workers.workers(workdir), self.monitoring
        return partial(
            run.run, experiment, workdir, self.force, workers, profile=monitoring.steps, metrics=monitoring.metrics
        )


@dataclass(frozen=True)
class Prepare(PhaseCommand):
    """Fetch the texts, train the tokenizer, encode every split."""

    force: Force = False
    workers: WorkerOptions = WorkerOptions()

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the phase's call, which the main process makes for all."""
        from kd_jax.phases import prepare

        experiment, workdir = self.open(overrides, locks, force=["prepare"] if self.force else ())
        workers = self.workers.workers(workdir)
        return partial(hosts.run_on_main, partial(prepare.run, experiment, workdir, self.force, workers))


@dataclass(frozen=True)
class Teacher(PhaseCommand):
    """Train the teacher on the data alone."""

    force: Force = False
    monitoring: MonitoringOptions = MonitoringOptions()

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the phase's call."""
        from kd_jax.phases import teacher

        self.monitoring.check(self.workdir)
        experiment, workdir = self.open(overrides, locks, force=["teacher"] if self.force else ())
        steps, metrics = self.monitoring.steps, self.monitoring.metrics
        return partial(teacher.run, experiment, workdir, self.force, profile=steps, metrics=metrics)


@dataclass(frozen=True)
class Cache(PhaseCommand):
    """Write the teacher's signals for every training token to disk."""

    force: Force = False
    writer: Share = ""
    """Write one share of the cache, such as 0/4; other processes or machines write the others."""

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the phase's call."""
        from kd_jax.phases import cache

        writer = parse_share("writer", self.writer) if self.writer else None
        if writer and self.hosts.host:
            raise KdError("--writer: expected no --host beside it, since hosts share the work already. Leave it out.")
        experiment, workdir = self.open(overrides, locks, writer, ["cache"] if self.force else ())
        return partial(cache.run, experiment, workdir, self.force, writer)


@dataclass(frozen=True)
class Student(PhaseCommand):
    """Train the students from the teacher's cache."""

    force: Force = False
    only: Annotated[str, arg(metavar="NAME")] = ""
    """Train this student alone."""
    monitoring: MonitoringOptions = MonitoringOptions()

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the phase's call."""
        from kd_jax.phases import student

        self.monitoring.check(self.workdir)
        force = ["student"] if self.force else ()
        experiment, workdir = self.open(overrides, locks, force=force, only=self.only)
        steps, metrics = self.monitoring.steps, self.monitoring.metrics
        return partial(student.run, experiment, workdir, self.force, self.only, profile=steps, metrics=metrics)


@dataclass(frozen=True)
class Sample(PhaseCommand):
    """Let students in rounds write the texts of a round, for a teacher elsewhere to score.

    `student` writes them too. Then `import-logprobs --student NAME` reads the scores, and `student` goes on.
    """

    only: Annotated[str, arg(metavar="NAME")] = ""
    """Write the texts of this student alone."""

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the phase's call."""
        from kd_jax.phases import sample

        experiment, workdir = self.open(overrides, locks, only=self.only)
        return partial(sample.run, experiment, workdir, self.only)


@dataclass(frozen=True)
class Evaluate(PhaseCommand):
    """Measure quality, closeness to the teacher and speed of every model."""

    force: Force = False

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the phase's call."""
        from kd_jax.phases import evaluate

        experiment, workdir = self.open(overrides, locks, force=["evaluate"] if self.force else ())
        return partial(evaluate.run, experiment, workdir, self.force)


@dataclass(frozen=True)
class Report(PhaseCommand):
    """Write report.json, report.md and report.html: what distillation gained."""

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the phase's call, which the main process makes for all."""
        from kd_jax.phases import report

        experiment, workdir = self.open(overrides, locks)
        return partial(hosts.run_on_main, partial(report.run, experiment, workdir))


@dataclass(frozen=True)
class New(Command):
    """Write a config to start from, for text of your own, and a teacher of your own if you have one."""

    config: Annotated[str, Positional, arg(metavar="CONFIG", help="Python file to write.")]
    task: Literal["translation", "summarization", "instructions", "generation"]
    """What the models are for."""
    family: Literal["", "encoder_decoder", "decoder_only"] = ""
    """Architecture of teacher and students; decoder_only for `generation`. Empty for that of --teacher."""
    train: Annotated[tuple[str, ...], arg(metavar="FILE ...")] = ("train.jsonl",)
    """Training examples: JSON lines, or a text file for each field: --train train.en train.fr."""
    teacher: Annotated[str, arg(metavar="FOLDER")] = ""
    """Local folder of a pretrained teacher in Hugging Face's layout; empty to train a teacher."""

    handles_sigterm = False

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the call that writes the config."""
        from kd_jax.phases import new

        if not self.family and not self.teacher:
            raise KdError("--family: expected encoder_decoder or decoder_only, got none. Add it, or --teacher FOLDER.")
        if not self.train:
            raise KdError("--train: expected files with training examples, got none. Name them: --train FILE ...")
        return partial(new.run, self.config, self.task, self.family, self.train, self.teacher)


@dataclass(frozen=True)
class Plan(Command):
    """Estimate what a cache costs and keeps, or whether training fits many devices.

    With --devices and --kind: a training step of each model on that many chips, compiled without any of them, with its
    memory and the limit that binds it. Otherwise: the cost of each signal's cache and of a student's step.
    """

    config: Config
    workdir: Annotated[str, arg(metavar="DIR", help="A run whose data and teacher are used; it is not changed.")] = ""
    devices: Annotated[int, arg(metavar="N")] = 0
    """Number of devices to plan for; 0 plans the cache."""
    kind: Annotated[str, arg(metavar="KIND")] = ""
    """Kind of the devices: tpu-v5e, tpu-v5p, tpu-v6e, h100 or h200."""
    only: Annotated[str, arg(metavar="NAME")] = ""
    """Plan this model alone (with --devices)."""

    takes_overrides = True

    def __post_init__(self) -> None:
        """Raise KdError for options that do not fit together."""
        if not 0 <= self.devices <= MAX_DEVICES or (self.kind and not self.devices):
            expected = f"an integer in [1, {MAX_DEVICES}]"
            raise KdError(f"--devices: expected {expected}, got {self.devices}. Example: --devices 256.")
        if self.only and not self.devices:
            raise KdError("--only: expected --devices and --kind beside it, got none. Add them or leave it out.")

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the plan's call; simulate the devices first, before JAX looks for any."""
        from kd_jax.cli.overrides import apply_overrides
        from kd_jax.phases import plan
        from kd_jax.phases.workdirs import open_workdir
        from kd_jax.runtime import backends, chips

        if self.devices:
            chips.find_chip(self.kind)
            backends.simulate_devices(self.devices)
        experiment = apply_overrides(self.config, overrides)
        workdir = open_workdir(self.workdir) if self.workdir else None
        if workdir and not workdir.path.exists():
            raise KdError(f"--workdir: expected a folder, got {self.workdir}, which does not exist. Leave it out.")
        return partial(plan.run, experiment, workdir, self.devices, self.kind, self.only)


@dataclass(frozen=True)
class Shrink(Command):
    """Compare what students keep of the trained teacher's layers and widths, before any training."""

    config: Config
    workdir: Folder

    takes_overrides = True

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the call; experiment.json stays, since the students need not be those of the run."""
        from kd_jax.cli.overrides import apply_overrides
        from kd_jax.phases import shrink
        from kd_jax.phases.workdirs import open_workdir

        experiment, workdir = apply_overrides(self.config, overrides), open_workdir(self.workdir)
        locks.enter_context(workdir.lock())
        return partial(shrink.run, experiment, workdir)


@dataclass(frozen=True)
class Ablate(Command):
    """Compare students with their controls over several seeds, with intervals and verdicts."""

    config: Config
    workdir: Folder
    seeds: Annotated[tuple[int, ...], arg(metavar="SEED ...")]
    """Seeds of the runs, such as 0 1 2."""
    force: Annotated[bool, arg(help="Measure again; trained models stay.")] = False
    metric: Annotated[str, arg(metavar="NAME|all")] = ""
    """Metric of the comparison; empty for the task's first."""

    takes_overrides = True

    def __post_init__(self) -> None:
        """Raise KdError for no seeds, one out of its range, or one given twice."""
        shown = " ".join(map(str, self.seeds)) or "none"
        if not self.seeds or not all(0 <= seed < 2**32 for seed in self.seeds):
            raise KdError(f"--seeds: expected integers in [0, {2**32 - 1}], got {shown}. Example: --seeds 0 1 2.")
        if len(set(self.seeds)) < len(self.seeds):
            raise KdError(f"--seeds: expected each seed once, got {shown}. Leave out the second.")

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the call; lock the ablation's folder and those of all seeds."""
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
        locks.enter_context(workdir.lock())
        force = ["evaluate"] if self.force else ()
        for seed in self.seeds:
            seeded = dataclasses.replace(experiment, seed=seed)
            try:
                locks.enter_context(lock_workdir(workdir.seed(seed), seeded, force=force))
            except KdError as error:
                raise KdError(f"seed {seed}: {error}") from error
        return partial(ablate.run, experiment, workdir, self.seeds, metrics, self.force)


@dataclass(frozen=True)
class ImportLogprobs(Command):
    """Import log-probabilities of a teacher elsewhere, in the place of `teacher` and `cache`.

    Run it after `prepare`, then `student`, `evaluate` and `report`.
    """

    files: Annotated[tuple[str, ...], Positional, arg(metavar="FILE ...")]
    """Files with the log-probabilities."""
    workdir: Folder
    format: Literal["vllm", "sglang", "distillkit", "maxtext"]
    """Format of the files."""
    temperature: Annotated[float, arg(metavar="T")]
    """Temperature of the softmax that gave them, such as 1."""
    mode: Literal["raw", "processed"]
    """The model's own distribution, or the one that a sampler made of it."""
    sequence: Literal["whole", "completion"] = "whole"
    """Token ids in the files: prompt and completion, or the completion alone if an encoder read the prompt."""
    missing: Annotated[float, arg(metavar="SHARE")] = 0.0
    """Share of the targets that the files may lack."""
    sum_error: Annotated[float, arg(metavar="E")] = 1e-3
    """How much above one the probabilities of a position may sum to."""
    student: Annotated[str, arg(metavar="NAME")] = ""
    """Student in rounds whose texts the files score; empty for the data's examples."""
    force: Force = False
    config: RunConfig = ""

    handles_sigterm = False

    def __post_init__(self) -> None:
        """Raise KdError if there are no files."""
        if not self.files:
            raise KdError("import-logprobs: expected files with log-probabilities, got none. Name them: FILE ...")

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the phase's call."""
        from kd_jax.phases import import_logprobs
        from kd_jax.teaching.imported.base import LogprobSource

        experiment, workdir = open_run(self.workdir, self.config)
        files = [Path(file) for file in self.files]
        source = LogprobSource(
            self.format, self.temperature, self.mode, self.sequence, missing=self.missing, sum_error=self.sum_error
        )
        locks.enter_context(workdir.lock())
        return partial(import_logprobs.run, experiment, workdir, files, source, self.force, self.student)


@dataclass(frozen=True)
class Generate(Command):
    r"""Answer standard input with a trained model, line by line.

    One line is written for each line; a line break inside an answer is written as an escape, such as \n.

    Options that are not set keep the values of the experiment's task. Without --beam the model decodes greedily, or
    samples if there is a temperature.
    """

    workdir: Folder
    model: Model = ""
    beam: int = 1
    """Width of beam search; 1 for none."""
    length: Annotated[int | None, arg(metavar="TOKENS")] = None
    """Maximum length in tokens."""
    temperature: Annotated[float | None, arg(metavar="T")] = None
    """Sampling temperature; 0 for greedy decoding."""
    top_k: Annotated[int | None, arg(metavar="K")] = None
    """Sample among the K most probable tokens; 0 for all."""
    top_p: Annotated[float | None, arg(metavar="P")] = None
    """Sample among the most probable tokens that reach probability P together."""
    min_p: Annotated[float | None, arg(metavar="P")] = None
    """Sample among tokens with at least P times the highest probability."""
    repetition_penalty: Annotated[float | None, arg(metavar="R")] = None
    """Divide the logits of tokens that were written before; 1 for none."""
    seed: Annotated[int | None, arg(metavar="N")] = None
    """Seed of the sampling."""
    config: RunConfig = ""

    handles_sigterm = False

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the call that answers standard input."""
        from kd_jax.phases import generate

        experiment, workdir = open_run(self.workdir, self.config)
        try:
            decoding = experiment.task.decoding.replace(
                beam=self.beam,
                length=self.length,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                seed=self.seed,
            )
        except KdError as error:  # it names the field; here that is an option
            raise KdError(re.sub(r"task\.decoding\.(sampling\.)?(\w+)", _option, str(error))) from error
        return partial(generate.run, experiment, workdir, self.model, decoding)


@dataclass(frozen=True)
class Score(Command):
    """Score trained models on new text, with the metrics of `evaluate`. Nothing is written."""

    workdir: Folder
    test: Annotated[tuple[str, ...], arg(metavar="FILE ...")]
    """JSON lines with the task's fields, or a text file for each field in their order: --test new.en new.fr."""
    model: Annotated[str, arg(metavar="NAME")] = ""
    """`teacher` or a student; empty for all models."""
    config: RunConfig = ""

    handles_sigterm = False

    def __post_init__(self) -> None:
        """Raise KdError if there are no files."""
        if not self.test:
            raise KdError("--test: expected files with new text, got none. Name them: --test FILE ...")

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the call that scores the models."""
        from kd_jax.phases import score

        experiment, workdir = open_run(self.workdir, self.config)
        return partial(score.run, experiment, workdir, self.test, self.model)


@dataclass(frozen=True)
class Export(Command):
    """Write a trained model as a folder for transformers, or for JAX alone."""

    workdir: Folder
    to: Annotated[str, arg(metavar="FOLDER")]
    """Folder to write; it must not exist."""
    model: Model = ""
    format: Literal["transformers", "jax"] = "transformers"
    """Files that transformers loads, or programs that JAX runs without kd_jax."""
    int8: Annotated[bool, arg(help="Quantize the weights to 8 bits (--format jax alone).")] = False
    config: RunConfig = ""

    handles_sigterm = False

    def prepare(self, overrides: Sequence[str], locks: ExitStack) -> Call:
        """Return the call that writes the folder."""
        from kd_jax.artifacts import files
        from kd_jax.phases import export

        files.check_path("--to", self.to)
        experiment, workdir = open_run(self.workdir, self.config)
        return partial(export.run, experiment, workdir, Path(self.to), self.model, self.format, self.int8)


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
    "sample": Sample,
    "import-logprobs": ImportLogprobs,
    "generate": Generate,
    "score": Score,
    "export": Export,
}


def open_run(path: str, config: str) -> tuple[ResolvedExperiment, Workdir]:
    """Return the experiment and the workdir of a run; the user's own classes are those of `config`, "" for none."""
    from kd_jax.config import load_experiment
    from kd_jax.phases import workdirs

    workdir, experiment = workdirs.open_run(path, load_experiment(config) if config else None)
    return experiment, workdir


def parse_share(option: str, text: str) -> tuple[int, int]:
    """Parse NUMBER/COUNT, one share of a work that several processes do."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise KdError(f"--{option}: expected NUMBER/COUNT with NUMBER below COUNT, got {text}. Example: 0/4.")
    return int(match[1]), int(match[2])


def _option(field: re.Match[str]) -> str:
    return f"--{field[2].replace('_', '-')}"
