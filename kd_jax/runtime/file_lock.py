"""A lock on a file that processes of this machine wait for; the dead hold nothing."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from kd_jax.runtime import progress


@contextlib.contextmanager
def file_lock(path: Path, what: str) -> Iterator[None]:
    """Waits, and says so, until no other process is within such a block of the same `path`.

    Args:
      path: of the lock's own empty file, made where it is not there; it stays.
      what: is waited for, in a person's words.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.log(f"{what}: another process is at it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
