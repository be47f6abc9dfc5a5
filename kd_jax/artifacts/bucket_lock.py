"""A lock on a folder in a bucket: an object that its holder renews.

A bucket has no file locks, but it creates an object on the condition that the name is free, and one of several
processes succeeds. A lock expires after TERM seconds without a renewal; then another process may take it over under the
next number. That process watches the lock for TERM seconds itself, so clocks of different machines are not compared.
"""

import _thread
import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from kd_jax.artifacts import files
from kd_jax.errors import KdError
from kd_jax.runtime import progress

TERM = 60.0  # seconds
NAME = ".kd_jax.lock"  # of the objects, followed by .WRITER for one of several writers, and by -NUMBER


@contextlib.contextmanager
def bucket_lock(folder: Path, writer: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold the lock of a run's folder in a bucket for the block, for a `writer` as of `Workdir.lock`."""
    expired = _wait_for_expiry(folder, _conflicting_locks(folder, writer))
    number = 1 + max((int(path.name.rpartition("-")[2]) for path in expired), default=0)
    lock = folder / (f"{NAME}.{writer[0]}-{number}" if writer else f"{NAME}-{number}")
    holder = {"process": os.getpid(), "machine": socket.gethostname(), "id": uuid.uuid4().hex}
    if not files.create_object(lock, json.dumps(holder | {"renewals": 0}).encode()):
        raise workdir_in_use(folder, _read(lock))
    # A lock of another name may have been created since they were listed, and an expired name used again.
    rivals = {path: _read(path) for path in _conflicting_locks(folder, writer) if path != lock}
    rivals = {path: text for path, text in rivals.items() if text and text != expired.get(path)}
    if rivals:
        lock.unlink()
        raise workdir_in_use(folder, next(iter(rivals.values())))
    for path in expired:
        path.unlink(missing_ok=True)
    released = threading.Event()

    def renew() -> None:
        renewals = 0
        while not released.wait(TERM / 4):
            renewals += 1
            with contextlib.suppress(Exception):  # each client raises its own errors while the network is down
                if not lock.exists():  # this process was suspended for longer than TERM, and another took over
                    progress.log(f"--workdir {folder}: another process has taken over the lock; stopping")
                    _thread.interrupt_main(signal.SIGTERM)
                    return
                lock.write_text(json.dumps(holder | {"renewals": renewals}))

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        released.set()
        renewing.join()
        lock.unlink(missing_ok=True)


def workdir_in_use(folder: Path, holder: str) -> KdError:
    """Return the error for a folder that another process has locked, from the text of the lock."""
    try:
        process = "process {process} of {machine}".format(**json.loads(holder))
    except (ValueError, KeyError, TypeError):  # the holder has just released it
        process = "an unknown process"
    return KdError(
        f"--workdir: expected a folder that no other process uses, got {folder}, used by {process}. Wait for it, or "
        "choose another --workdir."
    )


def _wait_for_expiry(folder: Path, locks: list[Path]) -> dict[Path, str]:
    """Return the locks' paths and texts once all have expired; raise KdError if one is renewed."""
    texts = {path: text for path in locks if (text := _read(path))}
    if not texts:
        return {}
    progress.log(f"--workdir {folder}: locked; waiting {TERM:.0f} seconds for the lock to be renewed or to expire")
    deadline = time.monotonic() + TERM
    while texts and time.monotonic() < deadline:
        time.sleep(TERM / 12)
        now = {path: _read(path) for path in texts}
        for path, text in now.items():
            if text and text != texts[path]:
                raise workdir_in_use(folder, text)
        texts = {path: text for path, text in now.items() if text}
    return texts


def _conflicting_locks(folder: Path, writer: tuple[int, int] | None) -> list[Path]:
    """Return the locks that exclude this process: for a writer not those of the other writers."""
    locks = [path for path in folder.iterdir() if path.name.startswith(NAME)] if folder.exists() else []
    if writer is None:
        return locks
    return [path for path in locks if path.name.rpartition("-")[0] in (NAME, f"{NAME}.{writer[0]}")]


def _read(lock: Path) -> str:
    """Return a lock's text; "" if it does not exist."""
    try:
        return lock.read_text()
    except FileNotFoundError:
        return ""
