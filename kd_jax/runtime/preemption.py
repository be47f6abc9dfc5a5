"""A stop on SIGTERM, before the scheduler takes the machine away.

The signal handler only sets a flag. Every loop with a progress bar checks the flag at each advance and ends there.
Training checks it between steps instead, and saves a checkpoint first.
"""

import contextlib
import signal
from collections.abc import Iterator

from kd_jax.errors import Preempted
from kd_jax.runtime import hosts

_requested = False
_deferred = False


@contextlib.contextmanager
def handle_sigterm() -> Iterator[None]:
    """Take the first SIGTERM in the block as a request to stop; a second one ends the process at once.

    Only the main thread may call it.
    """
    global _requested
    before = signal.getsignal(signal.SIGTERM)
    install_handler()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _requested = False


def install_handler() -> None:
    """Install the handler, also over the one that JAX installs when several hosts join."""
    signal.signal(signal.SIGTERM, _request)


def stop_requested() -> bool:
    """Return whether this process or another one of the run was asked to stop."""
    return _requested or hosts.stop_announced()


def may_stop_alone() -> bool:
    """Return whether a stop was requested and no other process must stop at the same place."""
    return hosts.process().count == 1 and stop_requested()


def poll() -> None:
    """Raise Preempted if a stop was requested, except in a `defer_stop` block."""
    if stop_requested() and not _deferred:
        hosts.announce_stop()
        raise Preempted


@contextlib.contextmanager
def defer_stop() -> Iterator[None]:
    """Keep `poll` from raising in the block; the caller checks `stop_requested` where it can stop."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def _request(number: int, frame: object) -> None:
    global _requested
    _requested = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
