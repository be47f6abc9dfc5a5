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
    """Traces the steps of a profile."""

    def __init__(self, profile: Profile | None):
        """Take the steps to trace; None for none."""
        self._profile, self._running, self._started = profile, False, False

    def before_step(self, step: int) -> None:
        """Start or end the trace if it is due before this step."""
        if self._profile is None:
            return
        if step == self._profile.first:
            jax.profiler.start_trace(str(self._profile.folder))
            self._running = self._started = True
        elif step == self._profile.last + 2:  # metrics are read one step late
            self.stop()

    def stop(self) -> None:
        """Write a running trace; log if no step of the profile was run."""
        if self._profile is None:
            return
        first, last, folder = self._profile
        if not self._started:
            progress.log(f"profile: no trace, since this run did not make step {first}")
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            progress.log(f"profile: steps {first} to {last} in {folder}; view with `xprof --logdir {folder}`")


@contextlib.contextmanager
def tracing(profile: Profile | None) -> Iterator[Tracer]:
    """Return a Tracer that stops at the end of the block."""
    tracer = Tracer(profile)
    try:
        yield tracer
    finally:
        tracer.stop()
