"""SIGTERM: the machine is about to be taken away. Loops ask here, and end where nothing is lost.

The signal only sets a flag. Every loop that shows a bar asks for it at each advance; training asks between steps
instead, so that it can leave a checkpoint first.
"""

import contextlib
import signal
from collections.abc import Iterator

_asked = False
_held = False


class Preempted(Exception):
    """The run was asked to stop, and what it had done is on disk."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within it SIGTERM asks the run to stop; a second one ends the process at once. In the main thread alone."""
    global _asked
    before = signal.signal(signal.SIGTERM, _ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _asked = False


def asked() -> bool:
    """Whether the run was asked to stop."""
    return _asked


def poll() -> None:
    """Raises Preempted if the run was asked to stop, but within `held`."""
    if _asked and not _held:
        raise Preempted


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within it `poll` lets pass: who holds it asks `asked` where it can stop."""
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
