"""SIGTERM: the machine is about to be taken away. Loops ask here, and end where nothing is lost.

The signal only sets a flag. Every loop that shows a bar asks for it at each advance; training asks between steps
instead, so that it can leave a checkpoint first.
"""

import contextlib
import signal
from collections.abc import Iterator

from kd_jax.errors import Preempted
from kd_jax.runtime import hosts

_asked = False
_held = False


@contextlib.contextmanager
def handle_sigterm() -> Iterator[None]:
    """Within it SIGTERM asks the run to stop; a second one ends the process at once. In the main thread alone."""
    global _asked
    before = signal.getsignal(signal.SIGTERM)
    install_handler()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _asked = False


def install_handler() -> None:
    """Hears SIGTERM from now on, whoever did before: JAX's runtime of several hosts does, once it has begun."""
    signal.signal(signal.SIGTERM, _ask)


def stop_requested() -> bool:
    """Whether the run was asked to stop, here or on another host."""
    return _asked or hosts.stop_announced()


def may_stop_alone() -> bool:
    """As `stop_requested`, where no other host would have to stop at the same place."""
    return hosts.process().count == 1 and stop_requested()


def poll() -> None:
    """Raises Preempted if the run was asked to stop, but within `defer_stop`."""
    if stop_requested() and not _held:
        hosts.announce_stop()
        raise Preempted


@contextlib.contextmanager
def defer_stop() -> Iterator[None]:
    """Within it `poll` lets pass: who holds it asks `stop_requested` where it can stop."""
    global _held
    _held = True
    try:
        yield
    finally:
        _held = False


def _ask(number: int, frame: object) -> None:
    global _asked
    _asked = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
