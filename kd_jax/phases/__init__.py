"""One module per command; each `run` reads what the phases before it left in the workdir.

`kd_jax.phases.prepare.run(experiment, workdir)` is the command `prepare` as a function, and likewise for the others.
Modules are imported on first use.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd_jax.phases import (
        ablate,
        cache,
        evaluate,
        export,
        generate,
        import_logprobs,
        new,
        plan,
        prepare,
        report,
        shrink,
        student,
        teacher,
    )

__all__ = [
    "ablate",
    "cache",
    "evaluate",
    "export",
    "generate",
    "import_logprobs",
    "new",
    "plan",
    "prepare",
    "report",
    "shrink",
    "student",
    "teacher",
]


def __getattr__(name: str) -> ModuleType:
    """Import the module of a phase (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'kd_jax.phases' has no attribute {name!r}")
    return importlib.import_module(f"kd_jax.phases.{name}")
