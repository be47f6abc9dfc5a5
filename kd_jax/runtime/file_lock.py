"""A lock file for processes of one machine; the lock of a dead process is free."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from kd_jax.runtime import progress


@contextlib.contextmanager
def file_lock(path: Path, work: str) -> Iterator[None]:
    """Wait until no other process holds the lock file `path`, then hold it for the block; it is never deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.log(f"{work}: another process works on it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
