"""A stop on SIGTERM, before the scheduler takes the machine away, and the end on Ctrl-C.

SIGTERM only sets a flag. Every loop with a progress bar checks the flag at each advance and ends there. Training checks
it between steps instead, and saves a checkpoint first.

Ctrl-C (SIGINT) sets a flag too, and the next check raises KeyboardInterrupt. The handler itself raises nothing: it may
run while Python is called by native code, such as JAX's lowering, which an exception crashes. A library may swallow the
exception of a check; then the next check raises it again.

Where no check comes, for example in XLA's compiler, a second thread, which sees each signal at once, ends the process.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator

from kd_jax.errors import Preempted
from kd_jax.runtime import hosts

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEAF_SECONDS = 1.5  # after Ctrl-C, in which a check must come
EXIT_SECONDS = 10.0  # after that, in which it must have ended; files stay whole if it is cut off
SEVERAL_HOSTS_SECONDS = 30.0  # the same among several hosts, which the main process tells of it


class _State:
    """What this process was asked for."""

    def __init__(self) -> None:
        self.stop_requested = False  # by SIGTERM
        self.interrupted = False  # by Ctrl-C
        self.noticed = False  # a check has raised KeyboardInterrupt
        self.deferred = False
        self.resumes: bool | None = None  # whether the command leaves something to resume from; None before it is known


_state = _State()


def install() -> None:
    """Handle SIGTERM and Ctrl-C from now on; call it first in the process, in its main thread."""
    reading, writing = os.pipe()  # Python writes the number of each signal to it
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # its signals are not ours
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    signal.signal(signal.SIGTERM, _request)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as for a job in a script's background
        signal.signal(signal.SIGINT, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # one may wait since `hold`


def hold() -> None:
    """Let signals wait until `install`, over a new start of the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def uninstall() -> None:
    """Let signals end the process at once, when its work is done."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def handle_signals(resumes: bool) -> Iterator[None]:
    """Handle signals while a command works; only the main thread may call it.

    Args:
      resumes: whether the first SIGTERM requests a stop, which leaves something to resume from; a second one ends the
        process. Otherwise the first one ends it.

    Raises:
      KeyboardInterrupt: at the end of the block at the latest, after Ctrl-C.
    """
    before = signal.getsignal(signal.SIGTERM)
    _state.resumes = resumes
    if resumes:
        install_handler()
    elif _state.stop_requested:
        end(signal.SIGTERM)
    try:
        yield
        _raise_if_interrupted()
    except Exception:
        _raise_if_interrupted()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        _state.stop_requested = False


def install_handler() -> None:
    """Install the handler of SIGTERM, also over the one that JAX installs when several hosts join."""
    signal.signal(signal.SIGTERM, _request)


def stop_requested() -> bool:
    """Return whether this process or another one of the run was asked to stop; after Ctrl-C raise KeyboardInterrupt."""
    _raise_if_interrupted()
    return _state.stop_requested or hosts.stop_announced()


def may_stop_alone() -> bool:
    """Return whether a stop was requested and no other process must stop at the same place."""
    return stop_requested() and hosts.process().count == 1


def poll() -> None:
    """Raise Preempted if a stop was requested, except in a `defer_stop` block; after Ctrl-C KeyboardInterrupt."""
    if stop_requested() and not _state.deferred:
        hosts.announce_stop()
        raise Preempted


@contextlib.contextmanager
def defer_stop() -> Iterator[None]:
    """Keep `poll` from raising Preempted in the block; the caller checks `stop_requested` where it can stop."""
    _state.deferred = True
    try:
        yield
    finally:
        _state.deferred = False


def last_line(number: int) -> str:
    """Return the line that a process leaves when a signal ends it."""
    line = "\nstopped" if number == signal.SIGINT else "stopped by SIGTERM"
    return line + ("; the same command resumes from the last checkpoint" if _state.resumes else "")


def end(number: int) -> None:
    """End the process from any thread, after one line, with the exit code that shells give the signal."""
    with contextlib.suppress(OSError):
        os.write(2, f"{last_line(number)}\n".encode())
    os._exit(128 + number)


def _raise_if_interrupted() -> None:
    if _state.interrupted:
        _state.noticed = True
        raise KeyboardInterrupt


def _request(number: int, frame: object) -> None:
    if _state.resumes is not False:  # else the watching thread ends the process
        _state.stop_requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(number: int, frame: object) -> None:
    if _state.resumes is None:  # nothing has begun
        end(signal.SIGINT)
    _state.interrupted = True


def _watch(reading: int) -> None:
    """End the process at a second signal, or where the main thread does not end it after Ctrl-C."""
    seen: set[int] = set()
    deadline, is_last = None, False
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reading], [], [], left)[0]:
            if is_last or not _state.noticed:
                end(signal.SIGINT)
            deadline = time.monotonic() + (EXIT_SECONDS if hosts.process().count == 1 else SEVERAL_HOSTS_SECONDS)
            is_last = True
            continue
        number = os.read(reading, 1)[0]
        if number not in SIGNALS or signal.getsignal(number) == signal.SIG_IGN:
            continue
        if number in seen or (number == signal.SIGTERM and _state.resumes is False):
            end(number)
        seen.add(number)
        if number == signal.SIGINT:
            deadline = time.monotonic() + DEAF_SECONDS
