"""The types of an experiment's fields: every value against the type hint of its field, and types in words."""

import dataclasses
import functools
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, TypeVar, Union, get_args, get_origin

from kd_jax.errors import KdError

PLAIN = {bool: "True or False", int: "an integer", float: "a number", str: "a string", type(None): "None"}
PLURAL = {bool: "True or False", int: "integers", float: "numbers", str: "strings"}


def check_fields(value: Any, field: str = "", names: bool = False) -> None:
    """Check the type of every field of a dataclass, and of all dataclasses in it.

    Args:
      value: a dataclass.
      field: its dotted name, for messages; "" for the whole experiment.
      names: whether functions and classes of other packages are names, as `config.from_data` reads them.

    Raises:
      KdError: names the first field of another type.

    Examples:
      >>> from kd_jax import Training
      >>> check_fields(Training(steps="many"), "teacher.training")
      Traceback (most recent call last):
      kd_jax.errors.KdError: teacher.training.steps: expected an integer, got 'many'.
    """
    # A resolved recipe or experiment may have been changed to one that is to be resolved again.
    hints = field_types(getattr(type(value), "config_class", type(value)))
    for name in (one.name for one in dataclasses.fields(value)):
        check_type(getattr(value, name), hints[name], f"{field}.{name}" if field else name, names)


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """Return field -> type hint of a dataclass; `Any` for a class whose hints cannot be read."""
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError, AttributeError, SyntaxError):  # a class of the user's, with types for a checker alone
        return dict.fromkeys((field.name for field in dataclasses.fields(kind)), Any)


def check_type(value: Any, hint: Any, field: str, names: bool = False) -> None:
    """Check a value, and all in it, against a type; `field` and `names` as of `check_fields`."""
    if isinstance(value, int) and value.bit_length() > 63:
        raise KdError(f"{field}: expected an integer of at most 18 digits, got {show(value)}.")
    if not _fits(value, hint, names):
        raise KdError(f"{field}: expected {describe(hint)}, got {show(value)}.{_remedy(value, hint)}")
    if isinstance(value, str) and "\0" in value:  # no path of the system can have it
        raise KdError(f"{field}: expected text without NUL, got {show(value)}.")
    if _is_dataclass(value):
        check_fields(value, field, names)
    elif isinstance(value, Mapping):
        item_hint = get_args(hint)[1] if get_origin(hint) is Mapping else Any
        for name, item in value.items():
            if not isinstance(name, str):
                raise KdError(f"{field}: expected names (strings) as keys, got {show(name)}.")
            check_type(item, item_hint, f"{field}.{name}", names)
    elif isinstance(value, tuple | list):
        for item in value:
            check_type(item, Any, field, names)


def _fits(value: Any, hint: Any, names: bool) -> bool:
    """Return whether a value has a type; the values of a mapping are not looked at."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one, names) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        hints = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(value) == len(hints) and all(map(_fits, value, hints, [names] * len(value)))
    if Callable in (origin, hint):
        return callable(value) or (names and isinstance(value, str | Mapping))
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if kind in (int, float):
        return _is_number(value, kind)
    if kind in PLAIN or kind is Mapping:
        return isinstance(value, kind)
    if names and isinstance(value, Mapping) and value.keys() == {"class", "fields"}:
        return True
    if isinstance(value, type):
        return False
    return _has_members(value, kind) if Protocol in kind.__bases__ else isinstance(value, kind)


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return kind is float or isinstance(value, numbers.Integral)


def _has_members(value: Any, protocol: type) -> bool:
    """Return whether an object has the public members of a protocol; their values are not computed."""
    members = {
        name
        for base in protocol.__mro__
        if Protocol in base.__bases__
        for name in (*vars(base), *vars(base).get("__annotations__", ()))
        if not name.startswith("_")
    }
    fields = (field.name for field in dataclasses.fields(value)) if _is_dataclass(value) else ()
    return members <= {*dir(type(value)), *fields, *getattr(value, "__dict__", ())}


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def describe(hint: Any) -> str:
    """Return a type in words.

    Examples:
      >>> describe(tuple[int, ...]), describe(Literal["relu", "gelu", "swiglu"]), describe(float | None)
      ('a tuple of integers', 'relu, gelu or swiglu', 'a number or None')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return either(map(describe, arguments))
    if origin is Literal:
        return either(map(str, arguments))
    if origin is tuple:
        items = arguments[:1] if arguments[1:] == (...,) else arguments
        return "a tuple of " + either({PLURAL.get(item) or describe(item): None for item in items})
    if origin is Mapping:
        return f"a dict of names and {PLURAL.get(arguments[1]) or describe(arguments[1])}"
    if Callable in (origin, hint):
        return "a function"
    return PLAIN.get(hint) or getattr(hint, "__name__", str(hint))


def either(choices: Iterable[str]) -> str:
    """Return "a, b or c"."""
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last


def show(value: Any) -> str:
    """Return a value for a message, at most 60 characters."""
    if isinstance(value, int) and value.bit_length() > 1000:  # str() refuses very long ones
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if _is_dataclass(value):
        return type(value).__name__
    if isinstance(value, list | tuple) and any(map(_is_dataclass, value)):
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _remedy(value: Any, hint: Any) -> str:
    if isinstance(value, type) and hint is not Any:
        return f" Write {value.__name__}(...)."
    if get_origin(hint) is tuple and not isinstance(value, tuple | list | Mapping) and len(repr(value)) < 40:
        return f" Write ({value!r},)."
    return ""
