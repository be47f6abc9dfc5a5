"""A lock in a bucket, where nothing can be locked: an object that its holder writes anew all the time.

What has not been written for TERM seconds is of a process that died. Who finds such an object looks at it for as long,
so no two machines' clocks are compared.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from kd_jax.errors import KdError
from kd_jax.runtime import progress

TERM = 60.0  # seconds
NAME = ".kd_jax.lock"


@contextlib.contextmanager
def bucket_lock(folder: Path, writer: tuple[int, int] | None = None) -> Iterator[None]:
    """Keeps other processes off a bucket's folder until the block ends.

    Args:
      folder: of the run.
      writer: as Workdir.lock's.

    Raises:
      KdError: if another process works there.
    """
    mine = folder / (f"{NAME}.{writer[0]}" if writer else NAME)
    # Writers keep everybody else off, but not each other.
    others = [folder / NAME, mine] if writer else [path for path in _listed(folder) if path.name.startswith(NAME)]
    _wait_for_the_dead(folder, others)
    holder = {"process": os.getpid(), "machine": socket.gethostname(), "id": uuid.uuid4().hex}
    write = lambda n: mine.write_text(json.dumps(holder | {"written": n}))  # noqa: E731
    write(0)
    time.sleep(TERM / 60)
    if json.loads(mine.read_text())["id"] != holder["id"]:  # two began at the same moment
        raise _refusal(folder, mine.read_text())
    ended = threading.Event()

    def renew() -> None:
        n = 0
        while not ended.wait(TERM / 4):
            n += 1
            with contextlib.suppress(Exception):  # a network that is gone for a moment, in each client's own words
                write(n)

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        mine.unlink(missing_ok=True)


def _wait_for_the_dead(folder: Path, locks: list[Path]) -> None:
    """Returns once none of the locks has a holder that lives; raises KdError for one that has."""
    seen = {path: _said(path) for path in locks}
    seen = {path: said for path, said in seen.items() if said}
    if not seen:
        return
    progress.log(f"--workdir {folder}: locked by a process that may be dead; looking for {TERM:.0f} seconds")
    until = time.monotonic() + TERM
    while time.monotonic() < until:
        time.sleep(TERM / 12)
        for path, said in seen.items():
            if (now := _said(path)) not in ("", said):
                raise _refusal(folder, now)
        if not any(_said(path) for path in seen):
            return
    for path in seen:
        path.unlink(missing_ok=True)


def _refusal(folder: Path, said: str) -> KdError:
    holder = json.loads(said)
    return KdError(
        f"--workdir {folder}: another kd_jax works there (process {holder['process']} of {holder['machine']}); "
        "wait for it, or take another --workdir"
    )


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def _said(lock: Path) -> str:
    """What stands in it; "" where there is none."""
    try:
        return lock.read_text()
    except FileNotFoundError:
        return ""
