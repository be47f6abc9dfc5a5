"""kd_jax: knowledge distillation of language-generation models in JAX.

The public names, and the folders `losses`, `signals`, `models`, `tasks`, `sources`, `tokenizers`, `decoding`, `optim`,
`schedules`, `recipes` and `phases`, are loaded on first use, so `import kd_jax` imports neither JAX nor Flax. They are
listed in __init__.pyi, where editors find their types.
"""

import importlib
import re
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_MODULES = set(re.findall(r"^from \. import (\w+) as \1$", _STUB, re.MULTILINE))
_HOME = {name: module for module, name in re.findall(r"^from (kd_jax[\w.]+) import (\w+) as \2$", _STUB, re.MULTILINE)}
__all__ = ["__version__", *sorted(_MODULES), *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"kd_jax.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'kd_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
