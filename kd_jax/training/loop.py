"""fit(): the one training loop, for teacher and student.

The loop dispatches step n and then reads what step n-1 measured, so the device never waits for the
host. What it writes is enough to go on from a kill at any moment to the same bits.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp

from kd_jax.artifacts import runlog
from kd_jax.artifacts.checkpoint import METRIC, Checkpoints, params_digest
from kd_jax.errors import KdError
from kd_jax.experiment import Recipe
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.objective.terms import Term
from kd_jax.parallel.base import Parallel, disallow_transfers
from kd_jax.training.step import Sums, eval_step, init_adapters, init_state, train_step
from kd_jax.types import Batch, Model, Params, TrainState

# What decides between checkpoints, and what every model is compared by: no smoothing, no teacher.
VALID_TERMS = {METRIC: Term(cross_entropy)}
LOG_EVERY = 20


def fit(
    title: str,
    recipe: Recipe,
    model: Model,
    params: Params,
    train: Iterable[Batch],
    valid: list[Batch],
    folder: Path,
    *,
    spread: Parallel,
    seed: int,
    shapes: int,
    teacher: tuple[Model, Params] | None = None,
) -> dict[str, Any]:
    """Trains from `params`, or goes on from the last checkpoint in `folder`.

    Args:
      title, recipe, model, params: shown beside the bar; what is trained on what; its first parameters.
      train: host Batches without end, from a grain dataset whose iterator's state can be saved.
      valid: host Batches of the validation split.
      folder: where checkpoints/ and metrics.jsonl are written.
      spread, seed: the devices; what decides dropout.
      shapes: how many shapes of batch there may be; one more is a bug, since each is compiled.
      teacher: (network, parameters) of the teacher in the step, where a term needs one; it is only read.

    Returns:
      What the manifest keeps, as `_outcome`.

    Raises:
      KdError: if the loss is not finite; names the step, the terms and the last good checkpoint.
    """
    training = recipe.training
    tx = training.optimizer.build(training.steps)
    rates = jax.device_get(jax.vmap(training.optimizer.rate(training.steps))(jnp.arange(training.steps)))
    one_step = _training_step(recipe, model, tx, spread, shapes, teacher)
    validate = _validation(spread, model, valid)
    log, iterator = runlog.MetricsLog(folder / "metrics.jsonl"), iter(train)
    state = _first_state(recipe, model, params, tx, seed, teacher, valid[0])

    with Checkpoints(folder) as checkpoints, runlog.progress(title, training.steps) as bar:
        begun, state = _begin(title, checkpoints, state, iterator, log)
        if not begun:
            log.append({"step": 0, METRIC: validate(spread.replicate(params))})
        bar.skip(begun)
        state, teacher_params = spread.replicate((state, teacher and teacher[1]))
        meter = Meter(title, checkpoints, log, bar, rates)
        with disallow_transfers():
            for step in range(begun + 1, training.steps + 1):
                batch = next(iterator)
                meter.before(batch)
                state, sums = one_step(state, spread.shard(batch), teacher_params)
                meter.after(step, spread.first(sums))
                if step % training.eval_every == 0 or step == training.steps:
                    meter.flush()
                    measured = validate(state.params)
                    log.append({"step": step, METRIC: measured})
                    checkpoints.save(spread.first(state), iterator.get_state(), measured)
                    meter.restart()
        checkpoints.wait()
        return _outcome(checkpoints, params, runlog.read(folder / "metrics.jsonl"))


def _training_step(
    recipe: Recipe, model: Model, tx: Any, spread: Parallel, shapes: int, teacher: tuple[Model, Params] | None
) -> Callable:
    """The compiled step; one trace more than `shapes` is an error."""
    chex.clear_trace_counter()  # it counts per function and process, and another model may have been trained
    traced = chex.assert_max_traces(train_step, n=shapes)
    parts = {
        "model": model,
        "terms": recipe.terms,
        "tx": tx,
        "teacher": teacher and teacher[0],
        "microbatches": recipe.training.microbatches,
    }
    return spread.spread(functools.partial(traced, **parts), donate_state=True)


def _first_state(
    recipe: Recipe,
    model: Model,
    params: Params,
    tx: Any,
    seed: int,
    teacher: tuple[Model, Params] | None,
    batch: Batch,
) -> TrainState:
    """The state before the first step, with the terms' adapters."""
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in (2, 3)]
    adapters = init_adapters(keys[1], recipe.terms, (model, params), teacher, batch) if teacher else {}
    return init_state(keys[0], params, tx, adapters)


def _begin(
    title: str, checkpoints: Checkpoints, state: TrainState, iterator: Any, log: runlog.MetricsLog
) -> tuple[int, TrainState]:
    """(steps already made, the state after them); brings the iterator and the log to the same step."""
    begun = checkpoints.last()
    log.truncate_after(-1 if begun is None else begun)
    if begun is None:
        return 0, state
    state, position = checkpoints.restore(state)
    iterator.set_state(position)
    runlog.say(f"{title}: goes on from step {begun}")
    return begun, state


def _validation(spread: Parallel, model: Model, valid: list[Batch]) -> Callable[[Params], float]:
    """Replicated parameters to the mean cross-entropy of the validation split, in nats a token."""
    step = spread.spread(functools.partial(eval_step, model=model, terms=VALID_TERMS))

    def validate(params: Params) -> float:
        sums = [spread.first(step(params, spread.shard(batch)))[METRIC] for batch in valid]
        host = jax.device_get(sums)
        return float(sum(float(one.value) for one in host) / sum(int(one.weight) for one in host))

    return validate


def _outcome(checkpoints: Checkpoints, like: Params, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest keeps; its figures are the log's, so they are the same for a run that was cut in two."""
    best = checkpoints.best()
    trained = [row for row in rows if "tokens" in row]
    validated = {row["step"]: row[METRIC] for row in rows if METRIC in row}
    seconds = sum(row["seconds"] for row in trained)
    return {
        "steps": max(validated),
        "loss_before_first_step": validated[0],
        METRIC: validated[best],
        "train_tokens_per_second": sum(row["tokens"] for row in trained) / seconds if seconds else None,
        "best_step": best,
        "digest": params_digest(checkpoints.restore_params(best, like)),
        "files": checkpoints.files(best),
    }


class Meter:
    """Reads each step's Sums one step late; sees to it that the loss is finite, to the log and to the bar.

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
        self._rows: list[dict[str, float]] = []
        self._tokens = self._seconds = 0.0

    def before(self, batch: Batch) -> None:
        """Called with each batch before its step: a new shape is about to be compiled."""
        self._timed = batch.targets_BT.shape in self._shapes
        self._shapes.add(batch.targets_BT.shape)

    def after(self, step: int, sums: Sums) -> None:
        """Called with a step's Sums, still on the device; reads those of the step before it."""
        previous, self._pending = self._pending, (step, sums)
        if previous is not None:
            self._read(*previous)

    def flush(self) -> None:
        """Reads the last step too, and logs what is left over."""
        self._read(*self._pending)
        self._pending = None
        self._write()

    def _read(self, step: int, sums: Sums) -> None:
        host = jax.device_get(sums)
        now = time.perf_counter()
        if self._timed:
            self._seconds += now - self._since
            self._tokens += int(host["loss"].weight)
        self._since = now
        row = {name: float(one.mean()) for name, one in host.items()}
        if not all(math.isfinite(value) for value in row.values()):
            last = self._checkpoints.last()
            raise KdError(
                f"{self._title}: step {step} is not finite ({', '.join(f'{k} {v:.4g}' for k, v in row.items())}); "
                f"last good checkpoint: {'none' if last is None else f'step {last}'}; try a lower learning rate"
            )
        self._rows.append(row | {"step": step})
        self._bar.advance(1, loss=row["loss"])
        if step % LOG_EVERY == 0:
            self._write()

    def _write(self) -> None:
        if not self._rows:
            return
        step = self._rows[-1]["step"]
        means = {name: sum(row[name] for row in self._rows) / len(self._rows) for name in self._rows[0]}
        timed = {"tokens": self._tokens, "seconds": self._seconds}
        self._log.append(means | timed | {"step": step, "learning_rate": float(self._rates[step - 1])})
        self._rows, self._tokens, self._seconds = [], 0.0, 0.0
