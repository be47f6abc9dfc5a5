"""Traces of training steps for xprof."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from kd_jax.runtime import progress


class Profile(NamedTuple):
    """The steps to trace.

    Attributes:
      first: number of the first step, from 1.
      last: number of the last step. The trace ends when the metrics of the step after it are read.
      folder: the folder of the trace, for xprof or TensorBoard.
    """

    first: int
    last: int
    folder: Path


class Tracer:
    """Traces those steps of a profile that are made."""

    def __init__(self, profile: Profile | None):
        """Take the steps to trace; None for none."""
        self._profile, self._running = profile, False
        self._first: int | None = None  # step that was traced

    def before_step(self, step: int) -> None:
        """Start or end the trace if it is due before this step."""
        if self._profile is None:
            return
        if self._profile.first <= step <= self._profile.last and not self._running:
            jax.profiler.start_trace(str(self._profile.folder))
            self._running, self._first = True, self._first or step
        elif step >= self._profile.last + 2:  # metrics are read one step late
            self.pause()

    def pause(self) -> None:
        """Write a running trace; a later step of the profile starts another one."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

    def close(self) -> None:
        """Write a running trace, and log where the traces are."""
        self.pause()
        if self._profile is None:
            return
        first, last, folder = self._profile
        if self._first is None:
            progress.log(f"profile: no trace, since this run made none of the steps {first} to {last}")
        else:
            progress.log(f"profile: steps {self._first} to {last} in {folder}; view with `xprof --logdir {folder}`")


@contextlib.contextmanager
def tracing(profile: Profile | None) -> Iterator[Tracer]:
    """Return a Tracer that is closed at the end of the block."""
    tracer = Tracer(profile)
    try:
        yield tracer
    finally:
        tracer.close()
