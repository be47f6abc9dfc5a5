"""A trace of some training steps, for xprof."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from kd_jax.runtime import progress


class Profile(NamedTuple):
    """Which steps are traced, and where to.

    Attributes:
      first, last: numbers of steps, from 1; the trace ends when the step after `last` has been read.
      folder: for the trace; xprof and TensorBoard read it.
    """

    first: int
    last: int
    folder: Path


class Tracer:
    """Traces the steps of a profile, where there is one."""

    def __init__(self, profile: Profile | None):
        self._profile, self._running, self._begun = profile, False, False

    def before(self, step: int) -> None:
        """Called before each step; what is measured is read one step late, so the end is too."""
        if self._profile is None:
            return
        if step == self._profile.first:
            jax.profiler.start_trace(str(self._profile.folder))
            self._running = self._begun = True
        elif step == self._profile.last + 2:
            self.stop()

    def stop(self) -> None:
        """Writes the trace, if one is being made; says where none was."""
        if self._profile and not self._begun:
            progress.log(f"profile: step {self._profile.first} was not among those that were made now: no trace")
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            steps = f"steps {self._profile.first} to {self._profile.last}"
            progress.log(
                f"profile: {steps} in {self._profile.folder}; `xprof --logdir {self._profile.folder}` shows it"
            )


@contextlib.contextmanager
def tracing(profile: Profile | None) -> Iterator[Tracer]:
    """A Tracer that stops at the end of the block."""
    tracer = Tracer(profile)
    try:
        yield tracer
    finally:
        tracer.stop()
