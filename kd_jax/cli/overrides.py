"""An experiment with fields replaced from the command line."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro

from kd_jax import config
from kd_jax.cli.tyro_errors import one_line_errors
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, ResolvedExperiment, resolve
from kd_jax.fields import check_fields
from kd_jax.phases.check import check

WRITTEN = (bool, int, float, str, type(None))  # types of options, beside tuples and literals of them


def apply_overrides(path: str, overrides: Sequence[str]) -> ResolvedExperiment:
    """Return the resolved and checked experiment of a file; overrides are words such as "--seed", "5"."""
    experiment = resolve_overrides(path, overrides)
    check(experiment)
    return experiment


def resolve_overrides(path: str, overrides: Sequence[str]) -> ResolvedExperiment:
    """Return the resolved experiment of a file, before its check."""
    experiment = config.load_experiment(path)
    if not isinstance(experiment, Experiment):
        raise KdError(f"config {path}: expected `experiment` to be an Experiment, got {type(experiment).__name__}.")
    check_fields(experiment)
    defaults = narrow(experiment)
    types = option_types(defaults)
    check_names(overrides, types)
    with one_line_errors(overrides, types):
        parsed = tyro.cli(
            type(defaults),
            prog=f"kd-jax COMMAND {path}",
            default=defaults,
            args=list(overrides),
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),  # --field True, as every field
        )
    return resolve(widen(experiment, parsed))


def option_types(narrowed: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted field, with `_` between words -> type, for each option of what `narrow` has made."""
    if isinstance(narrowed, Mapping):
        items = {name: (item, type(item)) for name, item in narrowed.items()}
    else:
        items = {f.name: (getattr(narrowed, f.name), f.type) for f in dataclasses.fields(narrowed)}
    options: dict[str, Any] = {}
    for name, (item, hint) in items.items():
        field = f"{prefix}{name}".replace("-", "_")
        if dataclasses.is_dataclass(item) or (item and isinstance(item, Mapping)):
            options |= option_types(item, f"{field}.")
        else:
            options[field] = hint
    return options


def check_names(overrides: Sequence[str], types: Mapping[str, Any]) -> None:
    """Check that every option is a field."""
    for word in (word for word in overrides if re.match(r"--\w", word) and word != "--help"):
        option = word.partition("=")[0]
        if (name := option[2:].replace("-", "_")) not in types:
            below = [field for field in types if field.startswith(f"{name}.")]
            nearest = below or difflib.get_close_matches(name, types, 1)
            suggestion = f" Did you mean --{nearest[0].replace('_', '-')}?" if nearest else ""
            raise KdError(f"{option}: expected a field of the experiment, got none of this name.{suggestion}")


def narrow(value: Any) -> Any:
    """Return a dataclass with the same fields, each of the type of its value.

    tyro needs the class of every part. A field's own type may be a protocol, for example Source.
    """
    if isinstance(value, Mapping):
        return {name: narrow(item) for name, item in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    hints = typing.get_type_hints(type(value))
    items = {field.name: narrow(getattr(value, field.name)) for field in dataclasses.fields(value)}
    fields = [
        (name, _option_type(hints[name], item), dataclasses.field(default_factory=lambda item=item: item))
        for name, item in items.items()
    ]
    narrowed = dataclasses.make_dataclass(type(value).__name__, fields, frozen=True)
    narrowed.__doc__ = type(value).__doc__
    return narrowed(**items)


def _option_type(hint: Any, value: Any) -> Any:
    """Return the type of a field's options: that of its value, or the part of a union that can be written."""
    if dataclasses.is_dataclass(value):
        return type(value)
    if value and isinstance(value, Mapping):
        return dict  # with an option for each key
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    options = [option for option in typing.get_args(hint) if typing.get_origin(option) or option in WRITTEN]
    written = [option for option in options if typing.get_origin(option) is not Callable]
    return typing.Union[tuple(written)] if written else hint  # noqa: UP007


def widen(value: Any, narrowed: Any) -> Any:
    """Return a value of the original classes with the fields of what `narrow` made of it."""
    if isinstance(value, Mapping):
        return {name: widen(item, narrowed[name]) for name, item in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return narrowed
    changes = {f.name: widen(getattr(value, f.name), getattr(narrowed, f.name)) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **changes)
