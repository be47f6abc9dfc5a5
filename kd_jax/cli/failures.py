"""What a command prints where it fails: one line for each kind of error, and the exit code.

The module imports nothing but the standard library and kd_jax's own exceptions, so it also serves where packages are
missing.
"""

import errno
import os
import sys
import sysconfig
import traceback
from pathlib import Path

from kd_jax.errors import KdError

PACKAGE = Path(__file__).resolve().parents[1]
DISK = {  # error of the system when nothing more can be written -> remedy
    errno.ENOSPC: "free some",
    errno.EDQUOT: "free some of it",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "give this user access",
}


def explain(error: Exception) -> tuple[str, int]:
    """Return one line for an exception, and the exit code: 1 for a bug of kd_jax, else 2.

    Examples:
      >>> explain(KdError("k: expected an integer, got 8.5."))
      ('k: expected an integer, got 8.5.', 2)
      >>> explain(NotADirectoryError(20, "Not a directory", "file/run"))
      ('file/run: expected a path that can be used, got an error (Not a directory). Check the path.', 2)
    """
    message = " ".join(str(error).split())[:300]
    if isinstance(error, KdError):
        return str(error), 2
    if isinstance(error, ModuleNotFoundError) and not (error.name or "kd_jax").startswith("kd_jax"):
        return missing_package(error), 2
    if isinstance(error, OSError | RuntimeError | ValueError):  # ArrayRecord and orbax have no errno of their own
        for number, remedy in DISK.items():
            if os.strerror(number) in str(error):
                reason = f"{os.strerror(number)} ({message[:200]})"
                return f"{reason}. To continue, {remedy} and run the same command again: files there are whole.", 2
    if isinstance(error, OSError):
        path = f"{error.filename}: expected a path that can be used" if error.filename else "expected usable files"
        return f"{path}, got an error ({error.strerror or message}). Check the path.", 2
    if "Unable to initialize backend" in message or _has_no_devices():
        platforms, reason = os.environ.get("JAX_PLATFORMS", ""), message[:200] or "no device"
        return (
            f"JAX_PLATFORMS: expected a platform whose devices JAX finds here, got {platforms!r} ({reason}). "
            "Unset it, or install JAX for the accelerator.",
            2,
        )
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in message:
        return (
            f"memory: expected enough for this command, got too little ({message[:200]}). Lower "
            "training.tokens_per_batch or evaluation.batch_size, or see docs/troubleshooting.md.",
            2,
        )
    place, is_ours = _place(error)
    problem = f"{place}: got an unexpected exception, {type(error).__name__}: {message}. "
    if is_ours:
        return f"{problem}This is a bug of kd_jax; KD_JAX_TRACEBACK=1 shows the traceback.", 1
    return f"{problem}Correct the line, or set KD_JAX_TRACEBACK=1 to see the traceback.", 2


def _has_no_devices() -> bool:
    """Return whether JAX finds no device; without its plugin for CUDA it fails by an assert without a message."""
    if "jax" not in sys.modules or not os.environ.get("JAX_PLATFORMS"):
        return False
    try:
        return not sys.modules["jax"].devices()
    except Exception:
        return True


def _place(error: Exception) -> tuple[str, bool]:
    """Return FILE, line N of the innermost code outside libraries, and whether it is kd_jax's."""
    library = sysconfig.get_paths()["stdlib"]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if frame.filename.startswith(("<", library)) or "site-packages" in path.parts:
            continue
        is_ours = path.resolve().is_relative_to(PACKAGE)
        shown = path.resolve().relative_to(PACKAGE.parent) if is_ours else path
        return f"{shown}, line {frame.lineno}", is_ours
    return "kd_jax", True


def missing_package(error: ModuleNotFoundError) -> str:
    """Return one line for a package that is missing: another Python than the one that kd_jax is installed in."""
    root = PACKAGE.parent
    python = root / ".venv" / "bin" / "python"
    if python.exists():
        remedy = f"Run `{python} -m kd_jax`, its environment."
    elif (root / "pyproject.toml").exists():
        remedy = f"Run `make install` in {root}, or `pip install -e {root}` for this Python."
    else:
        remedy = "Run `pip install kd_jax` for this Python."
    return f"kd_jax in {root} needs the package {error.name}, which {sys.executable} does not have. {remedy}"


def show(message: str) -> None:
    """Print an error as one line, and the traceback before it if KD_JAX_TRACEBACK is set."""
    from kd_jax.printable import printable

    if os.environ.get("KD_JAX_TRACEBACK"):
        traceback.print_exc()
    print("error: " + printable(" ".join(message.split())), file=sys.stderr)
