"""Experiment files: loading, flattening to plain fields, as data, fingerprints; and what a field may hold."""

import dataclasses
import hashlib
import importlib
import json
import numbers
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.errors import KdError


def load_experiment(path: str | Path) -> Any:
    """Runs an experiment file and returns the object that it calls `experiment`.

    Modules beside the file can be imported by it, and stay importable.

    Args:
      path: a Python file.

    Returns:
      The dataclass, as a rule a kd_jax.Experiment.

    Raises:
      KdError: if there is no such file, or it defines no `experiment` that is a dataclass.

    Examples:
      >>> load_experiment("experiments/configs/smoke.py").buckets
      (32,)
      >>> load_experiment("quickstrat.py")
      Traceback (most recent call last):
      kd_jax.errors.KdError: config quickstrat.py: no such file; \
wanted a Python file such as experiments/configs/quickstart.py
    """
    if not Path(path).is_file():
        raise KdError(f"config {path}: no such file; wanted a Python file such as experiments/configs/quickstart.py")
    # What stands beside it can be imported: a loss of one's own, say. Last, so that it hides no library.
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
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
        items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        flat = {prefix: qualified_name(_config_class(value), prefix)} if prefix else {}
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


def _config_class(value: Any) -> type:
    """Return the class by which a dataclass is written; a ResolvedRecipe is written as a Recipe."""
    return getattr(value, "config_class", type(value))


def qualified_name(thing: Any, where: str) -> str:
    """module.qualname of a class or function that can be found again by it."""
    if "<" in thing.__qualname__:
        raise KdError(f"{where}: {thing.__qualname__} has no name of its own; wanted a function defined in a module")
    if "<" in thing.__module__:  # of an experiment file, which is run and never imported
        raise KdError(
            f"{where}: {thing.__qualname__} stands in the config; put it into a module beside it and import it"
        )
    return f"{thing.__module__}.{thing.__qualname__}"


def to_text(value: Any) -> str:
    """The resolved configuration, one `name = value` a line, sorted."""
    return "".join(f"{name} = {json.dumps(item)}\n" for name, item in sorted(flatten(value).items()))


def fingerprint(value: Any) -> str:
    """A digest of the resolved configuration."""
    return hashlib.blake2b(to_text(value).encode(), digest_size=16).hexdigest()


def to_data(value: Any) -> Any:
    """The resolved configuration as JSON-able data; `from_data` is the inverse.

    Examples:
      >>> from kd_jax.schedules import Schedule
      >>> from_data(to_data({"weight": Schedule(1.0, 0.2, steps=10)}))
      {'weight': Schedule(start=1.0, end=0.2, steps=10, begin=0, shape='linear')}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": qualified_name(_config_class(value), "config"), "fields": fields}
    if isinstance(value, Mapping):
        return {"mapping": {name: to_data(item) for name, item in value.items()}}
    if isinstance(value, tuple | list):
        return [to_data(item) for item in value]
    return {"function": qualified_name(value, "config")} if callable(value) else value


def from_data(data: Any) -> Any:
    """The configuration that `to_data` made data of, without executing anything that is not this project's.

    Only this project's own dataclasses are built. Functions, and classes of other modules, stay as their names:
    who is handed a folder does not expect that it runs code.

    Raises:
      KdError: if the data names a class of this project that there is not, or is not as `to_data` makes it.
    """
    if isinstance(data, list):
        return tuple(from_data(item) for item in data)
    if not isinstance(data, Mapping):
        return data
    wanted = {"mapping": Mapping, "class": str, "fields": Mapping, "function": str}
    for key, kind in wanted.items():
        if (key in data and not isinstance(data[key], kind)) or ("class" in data and "fields" not in data):
            raise KdError(f"{str(data)[:80]}: not as kd_jax writes a configuration; use the file that it wrote")
    if "mapping" in data:
        return {name: from_data(item) for name, item in data["mapping"].items()}
    if "class" not in data:
        return data["function"] if "function" in data else data
    module, _, name = data["class"].rpartition(".")
    fields = {field: from_data(item) for field, item in data["fields"].items()}
    if not module.startswith("kd_jax."):
        return {"class": data["class"], "fields": fields}
    try:
        kind = vars(importlib.import_module(module))[name]
        # A class of that module alone: anything else would be a call of whatever the data names.
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module):
            raise KdError(f"{data['class']}: no configuration of kd_jax")
        return kind(**fields)
    except (ImportError, KeyError, TypeError) as error:
        raise KdError(
            f"{data['class']}: this kd_jax cannot build it ({error}); use the version that made it"
        ) from error


def is_number(value: Any) -> bool:
    """Whether a field holds a finite int or float; True, "0.1" and nan are none here.

    Examples:
      >>> [is_number(value) for value in (1, 0.5, True, "0.1", float("nan"))]
      [True, True, False, False, False]
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(value) < float("inf")


def is_count(value: Any, least: int) -> bool:
    """Whether a field holds a whole number of at least `least`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= least
