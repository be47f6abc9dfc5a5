"""The command line: parse, then import the phases that were asked for. Nothing here imports JAX."""

import argparse
import contextlib
import errno
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_jax.cli.memory import with_large_pages
from kd_jax.errors import KdError, Preempted
from kd_jax.phases import PHASES
from kd_jax.runtime import hosts, preemption

# How texts are written, where it differs from the task's own way.
GENERATE = {"beam": int, "length": int, "temperature": float, "top-k": int, "top-p": float, "min-p": float}
GENERATE |= {"repetition-penalty": float, "seed": int}
# How stored log-probabilities came to be.
IMPORT = {"format": str, "temperature": float, "mode": str, "sequence": str, "missing": float, "sum-error": float}
OPTIONS = {  # of the commands that take no field of an experiment
    "generate": ("workdir", "model", *GENERATE),
    "export": ("workdir", "model", "to", "format", "int8"),
    "new": ("task", "family", "train"),
    "import-logprobs": ("workdir", "force", *IMPORT),
}
DISK = {  # what the system says when nothing more can be written -> what to do
    errno.ENOSPC: "free some",
    errno.EDQUOT: "free some of it",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "give this user access",
}
HELP = """\
kd_jax makes a large language-generation model small without losing what it writes.

usage:
  kd-jax run CONFIG --workdir DIR [--any.field VALUE ...]     all phases, one after the other
  kd-jax PHASE CONFIG --workdir DIR [--any.field VALUE ...]   one of them
  kd-jax new CONFIG --task T --family F [--train FILE]        a config to start from, for JSON lines of your own:
                                                              T: translation, summarization, instructions, generation;
                                                              F: encoder_decoder, decoder_only
  kd-jax plan CONFIG [--workdir DIR]                          what a cache would cost and keep
  kd-jax plan CONFIG --devices N --kind KIND [--only NAME]    whether training fits N chips, and which limit binds it;
                                                              KIND: tpu-v5e, tpu-v5p, tpu-v6e, h100. Needs none of them
  kd-jax shrink CONFIG --workdir DIR [--any.field VALUE ...]  what students keep of the trained teacher's layers, heads,
                                                              neurons and channels, before any training
  kd-jax ablate CONFIG --workdir DIR --seeds 0 1 2            what distillation adds: a run for each seed, students
         [--metric NAME|all] [--any.field VALUE ...]          against their controls, with intervals and verdicts
  kd-jax generate --workdir DIR [--model NAME] [OPTIONS]      answer standard input, line by line: --beam N, --length N,
                                                              --temperature T, --top-k K, --top-p P, --min-p P,
                                                              --repetition-penalty R, --seed N
  kd-jax export --workdir DIR [--model NAME] --to FOLDER      a trained model as a folder that transformers loads, or
         [--format jax [--int8]]                              that JAX alone runs, its weights in 8 bits
  kd-jax import-logprobs FILE ... --workdir DIR               what a teacher elsewhere said, in the place of one that is
         --format vllm|sglang|distillkit|maxtext              trained here: after `prepare`, then `student`, `evaluate`,
         --temperature T --mode raw|processed                 `report`. --sequence completion where an encoder read the
                                                              prompts, --missing SHARE, --sum-error E

(`python -m kd_jax` is the same as `kd-jax`, and needs no installation.)

to start with:
  kd-jax run experiments/configs/smoke.py --workdir runs/smoke             a first look, about a minute
  kd-jax run experiments/configs/quickstart.py --workdir runs/quickstart   ten minutes on two cores

phases:
  prepare    fetch the text, train the tokeniser, encode every split (--processes 4: in as many processes, of this
             machine; --beam-runner NAME: as an Apache Beam pipeline, its own options in --beam-options="...")
  teacher    train the large model on the text alone
  cache      let the teacher say, once, what it thinks of every training token (--writer 0/4: a fourth of the work,
             in as many processes or machines as you like)
  student    train the small models from what the teacher left (--only NAME for one of them)
  evaluate   let every model write the test split; quality, closeness to the teacher, speed
  report     report.json, report.md and report.html: what distillation gained

options:
  --workdir DIR         where the run is kept; the same command goes on where a run was stopped
  --any.field VALUE     replaces a field of the experiment, such as --teacher.training.steps 500
  --profile 10:15       traces these training steps of every model that is trained, for xprof (run, teacher, student)
  --metrics NAME ...    writes what training measures to tensorboard, wandb or mlflow too (run, teacher, student)
  --host 0/4            this process is the first of four that work on the run together, each started with its own
                        number; --coordinator ADDRESS:PORT is where the first listens. --host auto: as the pod, SLURM
                        or MPI says. --patience SECONDS (1800) without progress, and all of them end
  --force               does a finished phase again, from nothing (ablate: the measuring alone)
  --help                this text; after a CONFIG, all of its fields
  --version             the version

A finished phase is skipped while its inputs are the same, and refused when they are not. Results go to standard
output, progress to standard error. The exit code is 0, 2 after a one-line error, 130 when interrupted. SIGTERM (a
machine that is taken away) leaves a checkpoint and ends with 0; the same command goes on from there.
"""


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code: 0, or 2 after one line on standard error."""
    try:
        words = parse(arguments)
        if words is None:
            return 0
        from kd_jax.cli.job import job, named

        # What waits for a person's words ends at once.
        watched = contextlib.nullcontext() if words.command in OPTIONS else preemption.handle_sigterm()
        with hosts.coordinated_exit(), watched, job(words) as calls:
            for phase, options in calls:
                named(phase)(**options)
    except KdError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RuntimeError, ValueError) as error:  # ArrayRecord and orbax have no errno of their own
        for number, remedy in DISK.items():
            if os.strerror(number) in str(error):
                reason = f"{os.strerror(number)} ({str(error).splitlines()[0][:200]})"
                return _fail(f"{reason}; {remedy} and run the same command again: what was there is whole")
        raise
    except Preempted:
        print("stopped by SIGTERM; the same command goes on from here", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def entry() -> None:
    """The command `kd-jax`; started again by itself where its memory would be in small pages."""
    environment = with_large_pages(os.environ)
    if sys.platform == "linux" and environment != dict(os.environ):
        os.execve(sys.executable, sys.orig_argv, environment)
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # The one line is said; threads of a library that was cut off must not add tracebacks to it.
        os._exit(code)


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def parse(arguments: Sequence[str]) -> argparse.Namespace | None:
    """The words, with those that replace fields of the experiment as `overrides`; None after --help.

    Raises:
      KdError: for an unknown command or option.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return None
    command, *rest = arguments
    if command == "--version":
        from kd_jax import __version__

        print(__version__)
        return None
    wants_help = bool({"-h", "--help"} & set(rest))
    try:
        words, overrides = _parser(command, wants_help).parse_known_args(rest)
    except (argparse.ArgumentError, SystemExit) as error:
        raise KdError(f"{command}: {error}; see `python -m kd_jax --help`") from error
    if wants_help and (command in OPTIONS or words.config is None):
        print(HELP)
        return None
    if command in OPTIONS and overrides:
        wanted = ", ".join(f"--{option}" for option in OPTIONS[command])
        raise KdError(f"{command}: unknown option {overrides[0]}; wanted {wanted}")
    if command in ("generate", "import-logprobs"):
        options = {option.replace("-", "_") for option in (GENERATE if command == "generate" else IMPORT)}
        words.changes = {option: value for option, value in vars(words).items() if option in options}
    phases = PHASES if command == "run" else (command,)
    return argparse.Namespace(command=command, phases=phases, overrides=overrides, **vars(words))


def _parser(command: str, wants_help: bool) -> argparse.ArgumentParser:
    """Of a command's words; raises KdError for an unknown command."""
    if command not in ("run", "plan", "shrink", "ablate", *PHASES, *OPTIONS):
        raise KdError(
            f"unknown command {command!r}; wanted run, plan, {', '.join(PHASES)}, shrink, import-logprobs, ablate, "
            "generate, export or new"
        )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    if command != "new":
        parser.add_argument("--workdir")  # a path, or a bucket's: gs://BUCKET/FOLDER
    if command == "import-logprobs":
        parser.add_argument("files", nargs="*", type=Path)
    elif command not in ("generate", "export"):
        parser.add_argument("config", nargs="?" if wants_help else None)
    if command in ("generate", "export"):
        parser.add_argument("--model", default="")
    if command == "export":
        parser.add_argument("--to", type=Path)
        parser.add_argument("--format", default="transformers")
        parser.add_argument("--int8", action="store_true")
    elif command in ("generate", "import-logprobs"):
        for option, kind in (GENERATE if command == "generate" else IMPORT).items():
            parser.add_argument(f"--{option}", type=kind, default=argparse.SUPPRESS)
    elif command == "new":
        parser.add_argument("--task", default="")
        parser.add_argument("--family", default="")
        parser.add_argument("--train", default="train.jsonl")
    else:
        parser.add_argument("--only", default="")
        parser.add_argument("--writer", type=_writer)
        parser.add_argument("--profile", type=_steps)
        parser.add_argument("--metrics", nargs="*", default=[])
        parser.add_argument("--processes", type=_processes)
        parser.add_argument("--beam-runner", default="")
        parser.add_argument("--beam-options", default="")
        parser.add_argument("--host", type=_host)
        parser.add_argument("--coordinator", default="")
        parser.add_argument("--patience", type=float, default=0.0)
    if command not in ("generate", "export", "new"):
        parser.add_argument("--force", action="store_true")
    if command == "plan":
        parser.add_argument("--devices", type=int)
        parser.add_argument("--kind", default="")
    if command == "ablate":
        parser.add_argument("--seeds", nargs="*", default=[])
        parser.add_argument("--metric", default="")
    return parser


def _host(given: str) -> tuple[int, int] | str:
    """ "0/4" as (0, 4), and "auto"."""
    return given if given == "auto" else _number("host", given)


def _writer(given: str) -> tuple[int, int]:
    """ "0/4" as (0, 4)."""
    return _number("writer", given)


def _number(option: str, given: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", given)
    if not match or not int(match[1]) < int(match[2]):
        raise KdError(f"--{option} {given}: wanted NUMBER/{option.upper()}S, such as 0/4 to 3/4")
    return int(match[1]), int(match[2])


def _processes(given: str) -> int:
    """ "4" as 4."""
    if not re.fullmatch(r"[1-9]\d{0,2}", given):
        raise KdError(f"--processes {given}: wanted a number of processes, from 1 to 999")
    return int(given)


def _steps(given: str) -> tuple[int, int]:
    """ "10:15" as (10, 15)."""
    match = re.fullmatch(r"(\d+):(\d+)", given)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise KdError(f"--profile {given}: wanted FIRST:LAST, training steps from 1, such as 10:15")
    return int(match[1]), int(match[2])
