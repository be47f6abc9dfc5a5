"""Digests of the user's own modules, whose source decides results and is no field of an experiment."""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

INSTALLED = {"site-packages", "dist-packages"}  # folders of packages that are not the user's


def code_digests(*values: Any) -> dict[str, str]:
    """Return "code.MODULE" -> digest of its source, for the user's modules that parts of an experiment need.

    These are the modules of the classes and functions in `values`, and all modules of the user's that those import.
    Installed packages are not the user's. In a script or a notebook, which change often, each class and function counts
    by itself, as "code.__main__.NAME".

    Examples:
      >>> from kd_jax import Term, cross_entropy
      >>> code_digests(Term(cross_entropy))
      {}
    """
    digests: dict[str, str] = {}
    modules: set[str] = set()
    for one in _classes_and_functions(values):
        name = one.__module__
        if name != "__main__":
            modules |= {name}
            continue
        with contextlib.suppress(OSError, TypeError):  # typed into an interpreter, which keeps no source
            digests[f"code.__main__.{one.__qualname__}"] = _digest(inspect.getsource(one).encode())
        modules |= _imports("__main__")
    seen: set[str] = set()
    while modules := modules - seen:
        seen |= modules
        sources = {name: path.read_bytes() for name in modules if (path := _source_file(name))}
        digests |= {f"code.{name}": _digest(source) for name, source in sources.items()}
        packages = {name.rpartition(".")[0] for name in modules} - {""}
        modules = packages.union(*map(_imports, sources))
    return dict(sorted(digests.items()))


def user_classes(value: Any) -> dict[str, type]:
    """Return full name -> class of the dataclasses in a part of an experiment that are not kd_jax's."""
    classes = [one for one in _classes_and_functions(value) if isinstance(one, type) and dataclasses.is_dataclass(one)]
    return {f"{one.__module__}.{one.__qualname__}": one for one in classes if one.__module__.split(".")[0] != "kd_jax"}


def _classes_and_functions(value: Any) -> Iterator[Any]:
    """Yield the class of each dataclass, and each function, in a part of an experiment."""
    if isinstance(value, functools.partial):
        yield from _classes_and_functions((value.func, value.args, value.keywords))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        yield from _classes_and_functions([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, Mapping):
        yield from _classes_and_functions(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _classes_and_functions(item)
    elif callable(value) and hasattr(value, "__qualname__"):
        yield value


def _source_file(name: str) -> Path | None:
    """Return the file of a module of the user's; None for another module."""
    root = name.partition(".")[0]
    if root == "kd_jax" or root in sys.stdlib_module_names or INSTALLED & set(_find(root).parts):
        return None
    path = _find(name)
    return path if path.suffix == ".py" and path.is_file() else None


def _find(name: str) -> Path:
    """Return the file of a module, or the folder of a package without one; Path() for neither. Nothing is imported."""
    if file := getattr(sys.modules.get(name), "__file__", None):
        return Path(file)
    spec = _find_spec(name)
    if spec is None:
        return Path()
    return Path(spec.origin or next(iter(spec.submodule_search_locations or ()), ""))


def _find_spec(name: str) -> ModuleSpec | None:
    parent = name.rpartition(".")[0]
    if parent:
        spec = _find_spec(parent)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        return PathFinder.find_spec(name, folders) if folders else None
    with contextlib.suppress(ImportError, ValueError):  # a module that was not imported in the usual way has no spec
        return importlib.util.find_spec(name)
    return None


def _imports(name: str) -> set[str]:
    """Return the names of all modules that a module's source may import."""
    path = _source_file(name)
    if path is None:
        return set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # edited since it was imported
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            with contextlib.suppress(ImportError):  # relative, without a package
                base = importlib.util.resolve_name(base, package) if node.level else base
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}  # the names may be modules
    return names - {name}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
