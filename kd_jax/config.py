"""Experiment files: loading, flattening to plain fields, fingerprints."""

import dataclasses
import hashlib
import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.errors import KdError


def load(path: str | Path) -> Any:
    """Runs an experiment file and returns the object that it calls `experiment`.

    Raises:
      KdError: if there is no such file, or it defines no `experiment` that is a dataclass.
    """
    if not Path(path).is_file():
        raise KdError(f"config {path}: no such file; wanted a Python file such as experiments/configs/quickstart.py")
    names = runpy.run_path(str(path))
    if "experiment" not in names or not dataclasses.is_dataclass(names["experiment"]):
        raise KdError(f"config {path}: defines no `experiment`; wanted `experiment = Experiment(...)`")
    return names["experiment"]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every field under `value` by its dotted name, as JSON-able values.

    A nested dataclass also leaves its class under its own name, so that exchanging one class for
    another changes the fields. Functions become module.qualname.

    Raises:
      KdError: for a lambda or a local function, whose name would not say what it does.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {field.name: vars(value)[field.name] for field in dataclasses.fields(value)}
        flat = {prefix: qualified_name(type(value), prefix)} if prefix else {}
    elif isinstance(value, Mapping):
        items, flat = dict(value), {}
    elif callable(value):
        return {prefix: qualified_name(value, prefix)}
    elif isinstance(value, tuple):
        return {prefix: list(value)}
    else:
        return {prefix: value}
    for name, item in items.items():
        flat |= flatten(item, f"{prefix}.{name}" if prefix else name)
    return flat


def qualified_name(thing: Any, where: str) -> str:
    """module.qualname of a class or function that can be found again by it."""
    if "<" in thing.__qualname__:
        raise KdError(f"{where}: {thing.__qualname__} has no name of its own; wanted a function defined in a module")
    return f"{thing.__module__}.{thing.__qualname__}"


def to_text(value: Any) -> str:
    """The resolved configuration, one `name = value` a line, sorted."""
    return "".join(f"{name} = {json.dumps(item)}\n" for name, item in sorted(flatten(value).items()))


def fingerprint(value: Any) -> str:
    """A digest of the resolved configuration."""
    return hashlib.blake2b(to_text(value).encode(), digest_size=16).hexdigest()
