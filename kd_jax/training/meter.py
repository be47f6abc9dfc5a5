"""Reads what each step measured, one step late; sees to it that the loss is finite, to the log and to the bar."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax

from kd_jax.artifacts.checkpoint import Checkpoints
from kd_jax.errors import KdError
from kd_jax.training.step import Sums
from kd_jax.types import Batch, Sum

LOG_EVERY = 20


class Meter:
    """The figures of a training run.

    Its seconds are those of training alone: a step that had to be compiled, evaluations and checkpoints
    do not count.
    """

    def __init__(self, title: str, checkpoints: Checkpoints, log: Any, bar: Any, rates: Any):
        self._title, self._checkpoints, self._log, self._bar, self._rates = title, checkpoints, log, bar, rates
        self._shapes: set[tuple[int, ...]] = set()
        self._pending: tuple[int, Sums] | None = None
        self.restart()

    def restart(self) -> None:
        """Leaves out the time since the last step was read."""
        self._since, self._timed = time.perf_counter(), True
        self._totals: dict[str, Sum] = {}
        self._tokens = self._seconds = 0.0

    @contextlib.contextmanager
    def compiling(self, batch: Batch) -> Iterator[None]:
        """Around each step: a new shape of batch is compiled, and the bar says so."""
        shape = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        known = shape in self._shapes
        self._shapes.add(shape)
        self._timed &= known  # until the next step is read: one is read while the next is under way
        with contextlib.nullcontext() if known else self._bar.compiling(f"step {batch.targets_BT.shape}"):
            yield

    def after(self, step: int, sums: Sums) -> None:
        """Called with a step's Sums, still on the device; reads those of the step before it."""
        previous, self._pending = self._pending, (step, sums)
        if previous is not None:
            self._read(*previous)

    def flush(self) -> None:
        """Reads the last step too, and logs what is left over."""
        step, sums = self._pending
        self._read(step, sums)
        self._pending = None
        self._write(step)

    def _read(self, step: int, sums: Sums) -> None:
        host = jax.device_get(sums)
        now = time.perf_counter()
        if self._timed:
            self._seconds += now - self._since
            self._tokens += int(host["loss"].weight)
        self._since, self._timed = now, True
        means = {name: float(one.mean()) for name, one in host.items()}
        if not all(math.isfinite(value) for value in means.values()):
            last = self._checkpoints.last()
            raise KdError(
                f"{self._title}: step {step} is not finite ({', '.join(f'{k} {v:.4g}' for k, v in means.items())}); "
                f"last good checkpoint: {'none' if last is None else f'step {last}'}; try a lower learning rate"
            )
        # Sums, not means: batches differ in how many tokens count.
        self._totals = jax.tree.map(lambda a, b: a + b, self._totals, host) if self._totals else host
        self._bar.advance(1, loss=means["loss"])
        if step % LOG_EVERY == 0:
            self._write(step)

    def _write(self, step: int) -> None:
        if not self._totals:
            return
        means = {name: float(one.mean()) for name, one in self._totals.items()}
        timed = {"tokens": self._tokens, "seconds": self._seconds}
        self._log.append(means | timed | {"step": step, "learning_rate": float(self._rates[step - 1])})
        self._totals, self._tokens, self._seconds = {}, 0.0, 0.0
