"""From the command line's words to an experiment: the only tyro import."""

import contextlib
import dataclasses
import io
import sys
import typing
from collections.abc import Sequence

import tyro
from tyro import constructors

from kd_jax import config
from kd_jax.phases.check import check
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment
from kd_jax.experiment import resolve as resolve_models


def resolve(path: str, overrides: Sequence[str]) -> Experiment:
    """The experiment of a file, with fields replaced.

    Args:
      path: the experiment's file.
      overrides: such as ["--teacher.training.steps", "500"]; typed by the fields they replace.

    Raises:
      KdError: for an unknown field (with the nearest name) or a value of the wrong type.
      SystemExit: with code 0 after --help.
    """
    experiment = config.load_experiment(path)
    if not isinstance(experiment, Experiment):
        raise KdError(f"config {path}: `experiment` is {type(experiment).__name__}; wanted an Experiment")
    said = io.StringIO()
    wanted_help = bool({"-h", "--help"} & set(overrides))
    try:
        with contextlib.redirect_stderr(sys.stderr if wanted_help else said), _registry():
            resolved = tyro.cli(
                Experiment,
                prog=f"python -m kd_jax run {path} --workdir DIR",
                default=experiment,
                args=list(overrides),
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),  # --field True, as every field
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise KdError(_in_one_line(said.getvalue())) from stop
    resolved = resolve_models(resolved)
    check(resolved)
    return resolved


def _registry() -> constructors.ConstructorRegistry:
    """Return tyro's rules and ours: a field whose type is a Protocol has the options of its value's class."""
    registry = constructors.ConstructorRegistry()

    @registry.struct_rule
    def fields_of_value(info: constructors.StructTypeInfo) -> constructors.StructConstructorSpec | None:
        kinds = (info.type, *typing.get_args(info.type))
        if not any(getattr(kind, "_is_protocol", False) for kind in kinds):
            return None
        if not dataclasses.is_dataclass(info.default):
            return None
        return registry.get_struct_spec(dataclasses.replace(info, type=type(info.default)))

    return registry


def _in_one_line(panel: str) -> str:
    """The message of tyro's panel: its first paragraph and the nearest names, without the help texts."""
    lines = [line.strip(" ─╭╮╰╯│") for line in panel.splitlines() if line.strip(" -─╭╮╰╯│")]
    said = []
    for line in lines[1:]:
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        said.append(line)
    meant = [line.split()[0] for line in said if line.startswith("--")]
    message = " ".join(said[:2] if said and said[0].endswith("argument") else said[:1]) or "unreadable options"
    return message + (f"; did you mean {' or '.join(meant[:2])}?" if meant else "")
