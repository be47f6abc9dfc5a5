"""The command line `kd-jax`: parse the words, then run the command. Nothing here imports JAX until it runs."""

import contextlib
import dataclasses
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from kd_jax import __version__
from kd_jax.cli import failures
from kd_jax.cli.commands import COMMANDS, Command
from kd_jax.cli.tyro_errors import one_line_errors
from kd_jax.errors import KdError, Preempted, ScoresNeeded
from kd_jax.fields import field_types
from kd_jax.printable import printable
from kd_jax.runtime import hosts, preemption

OTHER_WORDS = {"train": "teacher or student", "distill": "run", "distil": "run", "predict": "generate"}
HELP = """\
Knowledge distillation of language-generation models in JAX.

usage: kd-jax COMMAND [OPTIONS]

commands:
{commands}

  kd-jax COMMAND --help          options of a command and their defaults
  kd-jax run CONFIG --help       the fields of an experiment too: --teacher.training.steps 500 replaces one
  kd-jax --version               the version

to start with:
  kd-jax run experiments/configs/smoke.py --workdir runs/smoke             a first look, one to six minutes
  kd-jax run experiments/configs/quickstart.py --workdir runs/quickstart   ten minutes on two cores

Results go to standard output, progress to standard error. The exit code is 0, 2 after a one-line error, or 130 when
interrupted. After SIGTERM a run leaves a checkpoint and exits with 0; the same command resumes it. `python -m kd_jax`
is the same as `kd-jax`.
"""


def main(arguments: Sequence[str]) -> int:
    """Run one command; return 0, 2 after one line on standard error, 1 if that is a bug, or 130 after Ctrl-C."""
    try:
        parsed = parse(arguments)
        if parsed is None:
            return 0
        command, overrides = parsed
        from kd_jax.runtime.compilation_cache import use_compilation_cache

        use_compilation_cache()
        signals = preemption.handle_signals(command.handles_sigterm)
        with hosts.coordinated_exit(), signals, contextlib.ExitStack() as locks:
            call = command.prepare(overrides, locks)
            preemption.poll()
            call()
            if sys.stdout:
                sys.stdout.flush()  # a full disk is known here
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Preempted:
        print("stopped by SIGTERM; the same command resumes the run", file=sys.stderr)
        return 0
    except ScoresNeeded as error:
        print(printable(str(error)))
        return 0
    except KeyboardInterrupt:
        print(preemption.last_line(signal.SIGINT), file=sys.stderr)
        return 130
    except Exception as error:
        message, code = failures.explain(error)
        failures.show(message)
        return code
    return 0


def parse(arguments: Sequence[str]) -> tuple[Command, list[str]] | None:
    """Parse a command and the words that replace fields of its experiment; None after --help and --version."""
    name, *words = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:16} {_summary(kind)}" for name, kind in COMMANDS.items())))
        return None
    if name == "--version":
        print(__version__)
        return None
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, [*COMMANDS, *OTHER_WORDS], 1)
        suggestion = f" Did you mean {OTHER_WORDS.get(nearest[0], nearest[0])}?" if nearest else ""
        raise KdError(f"unknown command {name!r}: expected {', '.join(COMMANDS)}.{suggestion}")
    kind = COMMANDS[name]
    if {"-h", "--help"} & set(words):
        _print_help(name, words)
        return None
    check_options(name, words)
    with one_line_errors(words, option_types(kind)):
        command, rest = _parse(name, words)
    if rest and not kind.takes_overrides:
        raise KdError(f"{name}: unexpected word {rest[0]!r}. See `kd-jax {name} --help`.")
    return command, rest


def check_options(name: str, words: Sequence[str]) -> None:
    """Check that each --option is one of the command's, or may be a field of the experiment."""
    options = option_names(COMMANDS[name])
    for option in (word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")):
        if option in options:
            continue
        if COMMANDS[name].takes_overrides:
            from kd_jax.experiment import Experiment

            if "." in option:
                continue  # a field, which apply_overrides checks
            fields = option_names(Experiment)
            if option in fields:
                continue
            options = [*options, *fields]
        owners = [other for other, kind in COMMANDS.items() if option in option_names(kind)]
        if owners:
            raise KdError(f"{option}: an option of {', '.join(owners)}, not of {name}. Leave it out.")
        nearest = difflib.get_close_matches(option, options, 1)
        suggestion = f"Did you mean {nearest[0]}?" if nearest else f"See `kd-jax {name} --help`."
        raise KdError(f"{name}: unknown option {option}. {suggestion}")


def option_names(kind: type) -> list[str]:
    """Return the options of a dataclass's fields and of the option groups in it."""
    names: list[str] = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default):
            names += option_names(type(field.default))
        elif field.name not in ("config", "files") or field.default is not dataclasses.MISSING:  # not positional
            names.append(f"--{field.name.replace('_', '-')}")
    return names


def option_types(kind: type) -> dict[str, Any]:
    """Return field -> type of a command's options, with those of the option groups in it."""
    types: dict[str, Any] = {}
    for name, hint in field_types(kind).items():
        types |= option_types(hint) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else {name: hint}
    return types


def _parse(name: str, words: Sequence[str]) -> tuple[Command, list[str]]:
    return tyro.cli(
        COMMANDS[name],
        prog=f"kd-jax {name}",
        args=list(words),
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )


def _print_help(name: str, words: Sequence[str]) -> None:
    """Print a command's options; where a config is named, the fields of its experiment too."""
    with contextlib.suppress(SystemExit):
        _parse(name, ["--help"])
    config = next((word for word in words if word.endswith(".py")), None)
    if config and COMMANDS[name].takes_overrides:
        from kd_jax.cli.overrides import apply_overrides

        with contextlib.suppress(SystemExit):
            apply_overrides(config, ["--help"])


def _summary(kind: type[Command]) -> str:
    return (kind.__doc__ or "").splitlines()[0]
