"""The first moments of `kd-jax`: memory pages, standard streams and signals, before anything large is imported."""

import contextlib
import io
import os
import signal
import sys

from kd_jax.cli import failures
from kd_jax.cli.memory import with_large_pages
from kd_jax.runtime import preemption


def entry() -> None:
    """Run the command of sys.argv and exit; start the process again first if its memory would be in small pages."""
    environment = with_large_pages(os.environ)
    if sys.platform == "linux" and environment != dict(os.environ):
        preemption.hold()
        os.execve(sys.executable, sys.orig_argv, environment)
    open_streams()
    try:
        preemption.install()
        from kd_jax.cli.main import main

        code = main(sys.argv[1:])
        preemption.uninstall()
    except ModuleNotFoundError as error:
        failures.show(failures.missing_package(error))
        code = 2
    except KeyboardInterrupt:
        preemption.end(signal.SIGINT)
    for stream in (sys.stdout, sys.stderr):
        if stream:
            with contextlib.suppress(OSError):  # main has named what is wrong with the stream
                stream.flush()
    if code:
        # Threads of an interrupted library must not add tracebacks to the one line.
        os._exit(code)


def open_streams() -> None:
    """Make the standard streams safe: no file of ours takes a closed one's place, and any text can be printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # print(file=None) would write to standard output
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
