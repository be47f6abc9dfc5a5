"""Metrics of a training run: read one step late, checked for finiteness, written to the log and the bar."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from kd_jax.artifacts.checkpoint import Checkpoints
from kd_jax.artifacts.metrics_log import MetricsLog
from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.runtime.progress import Bar
from kd_jax.training.step import Sums
from kd_jax.types import Batch

LOG_EVERY = 20  # steps
MAX_EXAMPLES = 8  # of a batch, in a message


class PendingStep(NamedTuple):
    """A dispatched step whose metrics are not read yet; the fields are those of `Meter.after_step`."""

    step: int
    sums: Sums
    index_B: np.ndarray
    at_peak: float


class Meter:
    """Metrics of a training run.

    "seconds" and "tokens_per_second" cover training alone, without compilation, validation and checkpoints. "mfu" is
    the model's FLOPs utilization: seconds at the devices' peak / seconds.
    """

    def __init__(
        self,
        title: str,
        checkpoints: Checkpoints,
        log: MetricsLog,
        bar: Bar,
        learning_rates: Sequence[float],
        max_skipped_updates: int,
    ):
        """Start the clock.

        Args:
          title: name of the model.
          checkpoints: its checkpoints, for the message of an error.
          log: gets a row every LOG_EVERY steps.
          bar: shows the loss.
          learning_rates: of every update.
          max_skipped_updates: number of skipped updates above which the run stops.
        """
        self._title, self._checkpoints, self._log, self._bar = title, checkpoints, log, bar
        self._learning_rates, self._max_skipped, self._skipped = learning_rates, max_skipped_updates, 0
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()
        self._pending: PendingStep | None = None
        self.restart()

    def restart(self) -> None:
        """Exclude the time since the last read step."""
        self._since, self._timed = time.perf_counter(), True
        self._totals: Sums = {}
        self._tokens = self._seconds = self._at_peak = 0.0

    @contextlib.contextmanager
    def compiling(self, batch: Batch) -> Iterator[None]:
        """Wrap the dispatch of a step; for a new shape of batch, show that it compiles and exclude its time."""
        shape = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        known = shape in self._shapes
        self._shapes.add(shape)
        self._timed &= known  # until the next read: a step is read while the next one runs
        with contextlib.nullcontext() if known else self._bar.compiling(f"step {batch.targets_BT.shape}"):
            yield

    def after_step(self, step: int, sums: Sums, index_B: np.ndarray, at_peak: float = 0.0) -> None:
        """Take the metrics of a dispatched step, and read those of the step before it.

        Args:
          step: number of the step.
          sums: its Sums, on the device.
          index_B: numbers of its batch's examples.
          at_peak: seconds of the step at the devices' peak, from `seconds_at_peak`.

        Raises:
          KdError: if the loss was not finite, or too many updates were skipped; names the step and the examples.
        """
        previous, self._pending = self._pending, PendingStep(step, sums, index_B, at_peak)
        if previous is not None:
            self._read(*previous)

    def flush(self) -> None:
        """Read the last step, if it is not read yet, and write a row for the steps since the last row."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._read(*pending)
            self._write(pending.step)

    def _read(self, step: int, sums: Sums, index_B: np.ndarray, at_peak: float) -> None:
        host: Sums = jax.device_get(sums)
        now = time.perf_counter()
        if self._timed:
            self._seconds += now - self._since
            self._tokens += int(host["loss"].weight)
            self._at_peak += at_peak
        self._since, self._timed = now, True
        skipped = bool(host.pop("skipped").value)
        means = {name: float(metric.mean()) for name, metric in host.items()}
        self._skipped += skipped
        if skipped or not all(math.isfinite(value) for value in means.values()):
            self._report(step, means, index_B, skipped)
        else:
            # Sums and not means, because batches differ in the number of tokens.
            self._totals = jax.tree.map(lambda a, b: a + b, self._totals, host) if self._totals else host
        self._bar.advance(1, loss=means["loss"], **self._utilization())
        if step % LOG_EVERY == 0:
            self._write(step)

    def _report(self, step: int, means: dict[str, float], index_B: np.ndarray, skipped: bool) -> None:
        """Log a skipped update; raise KdError if there are too many, or an update was not finite and not skipped."""
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        examples = [str(i) for i in index_B if i >= 0]
        others = f" and {len(examples) - MAX_EXAMPLES} others" if len(examples) > MAX_EXAMPLES else ""
        batch = f"{metrics}; examples {', '.join(examples[:MAX_EXAMPLES])}{others}"
        if skipped and self._skipped <= self._max_skipped:
            progress.log(
                f"{self._title}: step {step}: update skipped ({batch}); {self._skipped} of at most "
                f"{self._max_skipped} skipped updates"
            )
            return
        if skipped:
            problem = f"expected at most {self._max_skipped} skipped updates, got {self._skipped}"
        else:
            problem = "expected a finite loss and gradient, got others"
        last = self._checkpoints.latest_step()
        raise KdError(
            f"{self._title}: step {step}: {problem} ({batch}). Inspect these examples, or set a lower learning rate. "
            f"Last good checkpoint: {'none' if last is None else f'step {last}'}."
        )

    def _write(self, step: int) -> None:
        if not self._totals:
            return
        row = {name: float(metric.mean()) for name, metric in self._totals.items()}
        row |= {"tokens": self._tokens, "seconds": self._seconds} | self._utilization()
        if self._seconds:
            row["tokens_per_second"] = self._tokens / self._seconds
        self._log.append(row | {"step": step, "learning_rate": float(self._learning_rates[step - 1])})
        self._totals, self._tokens, self._seconds, self._at_peak = {}, 0.0, 0.0, 0.0

    def _utilization(self) -> dict[str, float]:
        """Return {"mfu": utilization since the last row}; {} if the devices' peak is unknown."""
        return {"mfu": self._at_peak / self._seconds} if self._at_peak else {}
