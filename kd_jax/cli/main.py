"""The command line: parse, then import the one phase that was asked for."""

import argparse
import errno
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_jax.errors import KdError

PHASES = ("prepare", "teacher", "cache", "student", "evaluate", "report")
HELP = """\
kd_jax makes a large language-generation model small without losing what it writes.

usage:
  python -m kd_jax run CONFIG --workdir DIR [--any.field VALUE ...]     all phases, one after the other
  python -m kd_jax PHASE CONFIG --workdir DIR [--any.field VALUE ...]   one of them
  python -m kd_jax plan CONFIG [--workdir DIR]                          what a cache would cost and keep
  python -m kd_jax generate --workdir DIR [--model NAME] [--beam N]     translate standard input

to start with:
  python -m kd_jax run experiments/configs/smoke.py --workdir runs/smoke             a first look, under a minute
  python -m kd_jax run experiments/configs/quickstart.py --workdir runs/quickstart   ten minutes on two cores

phases:
  prepare    fetch the text, train the tokeniser, encode every split
  teacher    train the large model on the text alone
  cache      let the teacher say, once, what it thinks of every training token (--writer 0/4: a fourth of the work,
             in as many processes or machines as you like)
  student    train the small models from what the teacher left (--only NAME for one of them)
  evaluate   translate the test split with every model; quality, closeness to the teacher, speed
  report     report.json, report.md and report.html: what distillation gained

options:
  --workdir DIR         where the run is kept; the same command goes on where a run was stopped
  --any.field VALUE     replaces a field of the experiment, such as --teacher.training.steps 500
  --force               does a finished phase again, from nothing
  --help                this text; after a CONFIG, all of its fields

A finished phase is skipped while its inputs are the same, and refused when they are not.
"""


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code: 0, or 2 after one line on standard error."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    try:
        _dispatch(arguments[0], arguments[1:])
    except KdError as error:
        return _fail(str(error))
    except (OSError, RuntimeError, ValueError) as error:  # ArrayRecord and orbax have no errno of their own
        full = os.strerror(errno.ENOSPC)
        if full not in str(error):
            raise
        return _fail(f"{full} ({str(error).splitlines()[0][:200]}); free some and run the same command again")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _dispatch(command: str, rest: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--workdir", type=Path)
    if command == "generate":
        parser.add_argument("--model", default="")
        parser.add_argument("--beam", type=int, default=1)
    elif command in ("run", "plan", *PHASES):
        parser.add_argument("config", nargs="?" if {"-h", "--help"} & set(rest) else None)
        parser.add_argument("--force", action="store_true")
        parser.add_argument("--only", default="")
        parser.add_argument("--writer", default="")
    else:
        raise KdError(f"unknown command {command!r}; wanted run, plan, {', '.join(PHASES)} or generate")
    try:
        known, overrides = parser.parse_known_args(rest)
    except (argparse.ArgumentError, SystemExit) as error:
        raise KdError(f"{command}: {error}; see `python -m kd_jax --help`") from error
    if command != "generate" and known.config is None:
        print(HELP)
        return
    from kd_jax.cli import resolve as setup  # imports JAX, which --help must not

    setup.share_compiled_programs()
    if command == "generate":
        if overrides:
            raise KdError(f"generate: unknown option {overrides[0]}; wanted --workdir, --model or --beam")
        workdir = _workdir(known.workdir)
        experiment = setup.recall(workdir)
        importlib.import_module("kd_jax.phases.generate").run(experiment, workdir, known.model, known.beam)
        return
    experiment = setup.resolve(known.config, overrides)
    if command == "plan":
        _plan(experiment, known.workdir)
        return
    workdir = _workdir(known.workdir)
    if not (workdir / "experiment.py").exists():
        setup.remember(workdir, known.config, overrides, experiment)
    extra = {"only": known.only} if known.only else {}
    if extra and command != "student":
        raise KdError("--only: goes with the command student alone")
    if known.writer:
        if command != "cache":
            raise KdError("--writer: goes with the command cache alone")
        extra["writer"] = _writer(known.writer)
    for phase in PHASES if command == "run" else [command]:
        importlib.import_module(f"kd_jax.phases.{phase}").run(experiment, workdir, known.force, **extra)
    # Only now: a configuration that a phase refused must not take the place of the one that made what is there.
    setup.remember(workdir, known.config, overrides, experiment)


def _plan(experiment: Any, workdir: Path | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if workdir is None else _workdir(workdir)
        for phase in ("prepare", "plan"):
            importlib.import_module(f"kd_jax.phases.{phase}").run(experiment, folder)


def _writer(given: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", given)
    if not found or not int(found[1]) < int(found[2]):
        raise KdError(f"--writer {given}: wanted NUMBER/WRITERS, such as 0/4 to 3/4")
    return int(found[1]), int(found[2])


def _workdir(given: Path | None) -> Path:
    if given is None:
        raise KdError("--workdir: missing; wanted the folder to keep the run in, such as runs/quickstart")
    if given.exists() and not given.is_dir():
        raise KdError(f"--workdir {given}: not a folder; take another")
    return given
