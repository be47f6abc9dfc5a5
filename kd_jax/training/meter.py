"""Reads what each step measured, one step late; sees to it that the loss is finite, to the log and to the bar."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kd_jax.artifacts.checkpoint import Checkpoints
from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.training.step import Sums
from kd_jax.types import Batch, Sum

LOG_EVERY = 20
NAMED = 8  # examples of a batch


class Meter:
    """The figures of a training run; "mfu" is the share of the devices' peak that the model's FLOPs take.

    Its seconds are those of training alone: a step that had to be compiled, evaluations and checkpoints
    do not count.
    """

    def __init__(self, title: str, checkpoints: Checkpoints, log: Any, bar: Any, rates: Any, max_skipped_updates: int):
        self._title, self._checkpoints, self._log, self._bar, self._rates = title, checkpoints, log, bar, rates
        self._most, self._skipped = max_skipped_updates, 0
        self._shapes: set[tuple[int, ...]] = set()
        self._pending: tuple[int, Sums, np.ndarray, float] | None = None
        self.restart()

    def restart(self) -> None:
        """Leaves out the time since the last step was read."""
        self._since, self._timed = time.perf_counter(), True
        self._totals: dict[str, Sum] = {}
        self._tokens = self._seconds = self._at_peak = 0.0

    @contextlib.contextmanager
    def compiling(self, batch: Batch) -> Iterator[None]:
        """Around each step: a new shape of batch is compiled, and the bar says so."""
        shape = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        known = shape in self._shapes
        self._shapes.add(shape)
        self._timed &= known  # until the next step is read: one is read while the next is under way
        with contextlib.nullcontext() if known else self._bar.compiling(f"step {batch.targets_BT.shape}"):
            yield

    def after(self, step: int, sums: Sums, index_B: np.ndarray, at_peak: float = 0.0) -> None:
        """Called after each step; reads what the step before it measured.

        Args:
          step: its number.
          sums: its Sums, still on the device.
          index_B: its batch's examples.
          at_peak: seconds that it needs at the devices' peak, as `peak.seconds_at_peak`.

        Raises:
          KdError: if its loss was not finite, or too many updates were left out; names the step and the examples.
        """
        previous, self._pending = self._pending, (step, sums, index_B, at_peak)
        if previous is not None:
            self._read(*previous)

    def flush(self) -> None:
        """Reads the last step too, and logs what is left over."""
        pending, self._pending = self._pending, None
        self._read(*pending)
        self._write(pending[0])

    def _read(self, step: int, sums: Sums, index_B: np.ndarray, at_peak: float) -> None:
        host = jax.device_get(sums)
        now = time.perf_counter()
        if self._timed:
            self._seconds += now - self._since
            self._tokens += int(host["loss"].weight)
            self._at_peak += at_peak
        self._since, self._timed = now, True
        skipped = bool(host.pop("skipped").value)
        means = {name: float(one.mean()) for name, one in host.items()}
        self._skipped += skipped
        if skipped or not all(math.isfinite(value) for value in means.values()):
            self._report(step, means, index_B, skipped)
        else:
            # Sums, not means: batches differ in how many tokens count.
            self._totals = jax.tree.map(lambda a, b: a + b, self._totals, host) if self._totals else host
        self._bar.advance(1, loss=means["loss"], **self._utilisation())
        if step % LOG_EVERY == 0:
            self._write(step)

    def _report(self, step: int, means: dict[str, float], index_B: np.ndarray, skipped: bool) -> None:
        """Says which update was left out; raises KdError for one too many, or where it was made all the same."""
        figures = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        examples = [str(i) for i in index_B if i >= 0]
        others = f" and {len(examples) - NAMED} others" if len(examples) > NAMED else ""
        where = f"{self._title}: step {step} ({figures}; rows from examples {', '.join(examples[:NAMED])}{others})"
        if skipped and self._skipped <= self._most:
            progress.log(f"{where}: its update is left out, {self._skipped} of at most {self._most}")
            return
        last = self._checkpoints.latest_step()
        raise KdError(
            f"{where} is {f'the update number {self._skipped} that is left out' if skipped else 'not finite'}; "
            f"last good checkpoint: {'none' if last is None else f'step {last}'}; look at these examples, or try a "
            "lower learning rate"
        )

    def _write(self, step: int) -> None:
        if not self._totals:
            return
        means = {name: float(one.mean()) for name, one in self._totals.items()}
        timed = {"tokens": self._tokens, "seconds": self._seconds} | self._utilisation()
        if self._seconds:
            timed["tokens_per_second"] = self._tokens / self._seconds
        self._log.append(means | timed | {"step": step, "learning_rate": float(self._rates[step - 1])})
        self._totals, self._tokens, self._seconds, self._at_peak = {}, 0.0, 0.0, 0.0

    def _utilisation(self) -> dict[str, float]:
        """{"mfu": seconds at the peak / seconds}, of the steps since the last row; {} where no peak is known."""
        return {"mfu": self._at_peak / self._seconds} if self._at_peak else {}
