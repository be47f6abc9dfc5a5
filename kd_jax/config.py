"""Experiment files and their fields: load, flatten, write as data, read again; tests of field values."""

import dataclasses
import functools
import importlib
import json
import numbers
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from kd_jax.config_errors import explain
from kd_jax.errors import KdError
from kd_jax.fields import show

if TYPE_CHECKING:
    from kd_jax.experiment import Experiment


def load_experiment(path: str | Path) -> "Experiment":
    """Run an experiment file and return its variable `experiment`.

    The file can import modules of its own folder, for example a module with a custom loss.

    Args:
      path: a Python file.

    Raises:
      KdError: if the file does not exist, raises an exception, or defines no `experiment`.

    Examples:
      >>> load_experiment("experiments/configs/smoke.py").buckets
      (32,)
      >>> load_experiment("quickstrat.py")
      Traceback (most recent call last):
      kd_jax.errors.KdError: config: expected a Python file, got quickstrat.py, which does not exist. Name a file \
such as experiments/configs/quickstart.py.
    """
    if not os.path.isfile(path):
        problem = "is no regular file" if os.path.lexists(path) else "does not exist"
        raise KdError(
            f"config: expected a Python file, got {path}, which {problem}. Name a file such as "
            "experiments/configs/quickstart.py."
        )
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that no file there hides a library
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise KdError(explain(Path(path), error)) from error
    experiment = names.get("experiment")
    if not dataclasses.is_dataclass(experiment):
        raise KdError(
            f"config {path}: expected a variable `experiment`, got none. Add `experiment = kd_jax.Experiment(...)`."
        )
    return cast("Experiment", experiment)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return every field under `value` by its dotted name, as JSON-able values.

    A nested dataclass also has an entry with the name of its class, and a function is its module.qualname. A
    functools.partial has its function's entry and one for each of its arguments.

    Raises:
      KdError: for a function that no module defines under its name, such as a lambda.

    Examples:
      >>> from kd_jax.schedules import Schedule
      >>> flatten({"weight": Schedule(1.0, 0.2, steps=10)})["weight.end"]
      0.2
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        flat = {prefix: qualified_name(_config_class(value), prefix)} if prefix else {}
    elif is_unbuilt(value):
        items, flat = dict(value["fields"]), {prefix: value["class"]}
    elif isinstance(value, Mapping):
        items, flat = dict(value), {}
    elif isinstance(value, functools.partial):
        items = ({"args": value.args} if value.args else {}) | value.keywords
        flat = {prefix: f"functools.partial({qualified_name(value.func, prefix)})"}
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


def qualified_name(value: Any, field: str) -> str:
    """Return module.qualname of a class or function.

    Args:
      value: the class or function.
      field: for the message of the error.

    Raises:
      KdError: if no module defines the value under its name.
    """
    name, module = getattr(value, "__qualname__", "<none>"), getattr(value, "__module__", "<none>")
    if "<" in name:
        raise KdError(
            f"{field}: expected a function that a module defines, got {value!r}, which has no name of its own. Define "
            "it with `def` in a module."
        )
    if "<" in module:  # an experiment file, which is run and not imported
        raise KdError(
            f"{field}: expected a function of an importable module, got {name}, which the config defines. Move it to "
            "a module beside the config and import it."
        )
    return f"{module}.{name}"


def to_text(value: Any) -> str:
    """Return the configuration as text: one line `name = value` for each field, sorted."""
    return "".join(f"{name} = {json.dumps(item)}\n" for name, item in sorted(flatten(value).items()))


def to_data(value: Any) -> Any:
    """Return the configuration as JSON-able data; `from_data` is the inverse.

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
    if isinstance(value, functools.partial):
        arguments = ({"args": value.args} if value.args else {}) | value.keywords
        fields = {name: to_data(item) for name, item in arguments.items()}
        return {"class": f"functools.partial({qualified_name(value.func, 'config')})", "fields": fields}
    return {"function": qualified_name(value, "config")} if callable(value) else value


def from_data(data: Any, classes: Mapping[str, type] = MappingProxyType({})) -> Any:
    """Return the configuration that `to_data` wrote; no code outside kd_jax is executed.

    Only dataclasses of kd_jax are built. Functions, and classes of other modules, remain names, the latter with their
    fields (see `is_unbuilt`): a folder from someone else must not run code.

    Args:
      data: as `to_data` has returned it.
      classes: full name -> class, of other modules, to be built too.

    Raises:
      KdError: if the data is not of `to_data`, or names a class that this version of kd_jax does not have.
    """
    if isinstance(data, list):
        return tuple(from_data(item, classes) for item in data)
    if not isinstance(data, Mapping):
        return data
    types = {"mapping": Mapping, "class": str, "fields": Mapping, "function": str}
    for key, kind in types.items():
        if (key in data and not isinstance(data[key], kind)) or ("class" in data and "fields" not in data):
            raise KdError(
                f"experiment.json: expected a configuration as kd_jax writes it, got {str(data)[:80]}. Restore the "
                "file that kd_jax wrote."
            )
    if "mapping" in data:
        return {name: from_data(item, classes) for name, item in data["mapping"].items()}
    if "class" not in data:
        return data.get("function", data)
    module, _, name = data["class"].rpartition(".")
    fields = {field: from_data(item, classes) for field, item in data["fields"].items()}
    kind = classes.get(data["class"])
    if kind is None and not module.startswith("kd_jax."):
        return {"class": data["class"], "fields": fields}
    try:
        kind = kind or getattr(importlib.import_module(module), name)
        # Only a class that the module itself defines; any other callable would be code of the data's choice.
        is_ours = isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module
        if data["class"] not in classes and not is_ours:
            raise KdError(
                f"experiment.json: expected a configuration class of kd_jax, got {data['class']}. Restore the file "
                "that kd_jax wrote."
            )
        return kind(**fields)
    except (ImportError, AttributeError, TypeError) as error:
        raise KdError(
            f"experiment.json: expected a class of this version of kd_jax, got {data['class']} ({error}). Use the "
            "version that wrote the file."
        ) from error


def is_unbuilt(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Return whether `from_data` has left an object of another module as {"class": its name, "fields": ...}."""
    return isinstance(value, Mapping) and value.keys() == {"class", "fields"} and isinstance(value["class"], str)


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a field's value is a finite int or float; True, "0.1" and nan are not.

    Examples:
      >>> [is_number(value) for value in (1, 0.5, True, "0.1", float("nan"))]
      [True, True, False, False, False]
    """
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and abs(cast(float, value)) < float("inf")


def is_count(value: Any, minimum: int) -> TypeGuard[int]:
    """Return whether a field's value is an integer of at least `minimum`; True is not.

    Examples:
      >>> [is_count(value, 1) for value in (1, 0, 2.0, True)]
      [True, False, False, False]
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and cast(int, value) >= minimum


# Upper bounds of integers: above any use, and low enough that nothing of their size fills a machine or takes for ever.
MAX_SEED = 2**32 - 1  # of JAX and NumPy
MAX_COUNT = 10**9  # examples, characters, steps between two events
MAX_STEPS = 10**7  # a schedule's learning rates are computed for all steps, in float32, which counts to 16 million
MAX_TOKENS = 10**8  # of a batch
MAX_LENGTH = 2**20  # tokens of a text
MAX_ROWS = 10**5  # texts of a batch, microbatches, samples in a report
MAX_RESAMPLES = 10**6
MAX_BEAM = 1000  # hypotheses, drafted tokens, sampled continuations
MAX_LAYERS = 1000
MAX_WIDTH = 2**20  # channels, neurons, heads
MAX_VOCAB = 2**24
MAX_NAME = 100  # letters; files are named after it, with endings, and a file's name has at most 255 bytes


def check_count(field: str, value: Any, low: int, high: int = MAX_COUNT, remedy: str = "") -> None:
    """Check that a field's value is an integer in [low, high].

    Raises:
      KdError: names the field, the bounds and the value.

    Examples:
      >>> check_count("evaluation.draft", 10**30, 0, MAX_BEAM)
      Traceback (most recent call last):
      kd_jax.errors.KdError: evaluation.draft: expected an integer in [0, 1000], got 1000000000000000000000000000000.
    """
    if not (is_count(value, low) and value <= high):
        raise KdError(f"{field}: expected an integer in [{low}, {high}], got {show(value)}. {remedy}".rstrip())
