"""Exceptions of an experiment file in one line: where they happen, and what Python says in plain words."""

import builtins
import difflib
import re
import traceback
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kd_jax.errors import KdError

REMEDY = "Correct the line, or set KD_JAX_TRACEBACK=1 to see the traceback."
OURS = Path(__file__).resolve().parent
UNEXPECTED = re.compile(r"(?:(\w+)\.__init__|(\w+))\(\) got an unexpected keyword argument '(\w+)'")
MISSING = re.compile(r"(?:(\w+)\.__init__|(\w+))\(\) missing \d+ required .*arguments?: (.*)")


def explain(path: Path, error: BaseException) -> str:
    """Return one line for an exception that an experiment file has raised.

    Examples:
      >>> error = SyntaxError("'(' was never closed", ("a.py", 2, 1, "x = ("))
      >>> explain(Path("a.py"), error).partition(". Correct")[0]
      "config a.py, line 2: expected Python, got `x = (`: '(' was never closed"
    """
    lines = user_lines(path, error)
    where = [f"line {number}" if name == str(path) else f"{Path(name).name}, line {number}" for name, number in lines]
    prefix = ", ".join([f"config {path}", *where[:1]]) + "".join(f": {place}" for place in where[1:])
    return f"{prefix}: {error}" if isinstance(error, KdError) else f"{prefix}: {describe_exception(error)}. {REMEDY}"


def user_lines(path: Path, error: BaseException) -> list[tuple[str, int]]:
    """Return (file, line) of the config, then of the deepest line in another file of its folder, if there is one."""
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 0))
    in_config = [frame for frame in frames if frame[0] == str(path)][-1:]
    others = [frame for frame in frames if frame[0] != str(path) and _is_users(Path(frame[0]), path)][-1:]
    return in_config + others


def _is_users(file: Path, config: Path) -> bool:
    file = file.resolve()
    is_library = file.is_relative_to(OURS) or "site-packages" in file.parts
    return file.is_relative_to(config.resolve().parent) and not is_library


def describe_exception(error: BaseException) -> str:
    """Return an exception in plain words, with the nearest name where one is misspelt."""
    last_line = traceback.format_exception_only(error)[-1]  # "TypeError: message", also where str(error) fails
    message = " ".join(last_line.split())[:300]
    scope = _names(error)
    if isinstance(error, SyntaxError):
        text = f"`{error.text.strip()[:60]}`: " if error.text and error.text.strip() else ""
        return f"expected Python, got {text}{error.msg}"
    if isinstance(error, ModuleNotFoundError):
        return f"expected a module that is installed or stands beside the config, got {error.name}"
    if isinstance(error, ImportError) and (match := re.search(r"cannot import name '(\w+)'", message)):
        names = dir(__import__(error.name, fromlist=["*"])) if error.name else ()
        return f"expected a name of {error.name}, got {match[1]}{_suggestion(match[1], names)}"
    if isinstance(error, NameError) and error.name:
        names = [*scope, *vars(builtins)]
        return f"expected a name that the file defines or imports, got {error.name}{_suggestion(error.name, names)}"
    if isinstance(error, AttributeError) and error.name and error.obj is not None:
        owner = error.obj.__name__ if isinstance(error.obj, type | types.ModuleType) else type(error.obj).__name__
        return f"expected an attribute of {owner}, got {error.name}{_suggestion(error.name, dir(error.obj))}"
    if isinstance(error, TypeError) and (match := UNEXPECTED.search(message)):
        owner, wrong = match[1] or match[2], match[3]
        fields = getattr(_find_class(owner, scope), "__dataclass_fields__", {})
        return f"{owner}: expected a name of its fields, got {wrong}{_suggestion(wrong, fields)}"
    if isinstance(error, TypeError) and (match := MISSING.search(message)):
        return f"{match[1] or match[2]}: expected a value for {match[3]}, got none"
    if isinstance(error, SystemExit):
        return "expected `experiment = ...` to be reached, got an exit"
    return f"got an exception, {message}"


def _names(error: BaseException) -> dict[str, Any]:
    """Return the names in all frames of an exception, the innermost last."""
    names: dict[str, Any] = {}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        names |= frame.f_globals | frame.f_locals
    return names


def _find_class(name: str, scope: dict[str, Any]) -> Any:
    """Return the class of a name in a scope, in a module there, or of an object there; None if there is none."""
    modules = [value for value in scope.values() if isinstance(value, types.ModuleType)]
    candidates = [scope.get(name), *(getattr(module, name, None) for module in modules), *map(type, scope.values())]
    return next((one for one in candidates if isinstance(one, type) and one.__name__ == name), None)


def _suggestion(name: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
