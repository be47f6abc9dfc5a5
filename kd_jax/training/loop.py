"""The training loop of teacher and students.

The loop dispatches step n and then reads the metrics of step n - 1, so the device never waits for the host. A killed
run resumes from its files to the same bits.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.artifacts import metrics_log
from kd_jax.artifacts.checkpoint import METRIC, Checkpoints, DamagedCheckpoint, quarantine_unreadable
from kd_jax.artifacts.digests import params_digest
from kd_jax.errors import KdError, Preempted
from kd_jax.experiment import ResolvedRecipe, Training
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.models.base import Model
from kd_jax.models.stack import unstack_layers
from kd_jax.objective.terms import Term
from kd_jax.runtime import hosts, preemption, progress
from kd_jax.runtime.devices import Compiled, Devices, disallow_transfers
from kd_jax.runtime.progress import Bar
from kd_jax.training.meter import Meter
from kd_jax.training.on_policy import LivePool
from kd_jax.training.peak import seconds_at_peak
from kd_jax.training.profile import Tracer
from kd_jax.training.selection import ValidationTexts, selection_value
from kd_jax.training.step import TrainState, eval_step, init_adapters, init_state, state_axes, train_step
from kd_jax.types import Batch, Params

# Compares all models, so it has no label smoothing and no teacher.
VALID_TERMS = {METRIC: Term(cross_entropy)}


class BatchIterator(Protocol):
    """An iterator of host batches whose position can be saved, such as that of a grain dataset."""

    def __next__(self) -> Batch:
        """Return the next batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Return the position, as JSON-able data."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a position."""
        ...


class Run(NamedTuple):
    """A model and its training data.

    Attributes:
      title: name of the model, shown beside the progress bar.
      recipe: objective, steps and optimizer.
      model: the network.
      train: endless host batches; their iterator is a BatchIterator.
      valid: host batches of the validation split.
      shapes: maximum number of shapes of training batches. One more is a bug, because each is compiled.
      teacher: (network, parameters) of the teacher in the step; None if no term needs it.
      texts: validation texts to choose the best step by; None to choose without.
      pool: fills `train` with texts of the model's own between updates; None if it learns from none.
      tracer: traces steps for a profile.
      writers: writers that get the rows of the metrics log too.
    """

    title: str
    recipe: ResolvedRecipe
    model: Model
    train: Iterable[Batch]
    valid: Sequence[Batch]
    shapes: int
    teacher: tuple[Model, Params] | None = None
    texts: ValidationTexts | None = None
    pool: LivePool | None = None
    tracer: Tracer = Tracer(None)
    writers: Sequence[metrics_log.MetricWriter] = ()


def fit(
    run: Run, params: Params, folder: Path, devices: Devices, seed: int, span: tuple[int, int] | None = None
) -> dict[str, Any] | None:
    """Train a model, or resume from the last checkpoint in its folder.

    Args:
      run: the model and its data.
      params: the model's first parameters.
      folder: the folder for checkpoints/ and metrics.jsonl.
      devices: the devices that share the steps.
      seed: decides dropout and the first parameters of adapters.
      span: the updates before the first step and after the last one to train now, with this run's data; None for all.

    Returns:
      None if steps are left, after a checkpoint of the span's last step, or if the last checkpoint that can be read is
      from before the span. Else the outputs of the manifest: the best step, its validation cross-entropy (nats per
      token), its headline if texts were decoded, digest and files.

    Raises:
      KdError: if the loss is not finite. The message names the step, the terms and the last good checkpoint.
      Preempted: if the run was asked to stop, after a checkpoint of the current step.
    """
    training = run.recipe.training
    start, end = span or (0, training.steps)
    tx = training.optimizer.build(training.steps)
    train = compile_train_step(run.recipe, run.model, run.teacher and run.teacher[0], tx, devices, run.shapes)
    evaluate = _evaluation(run, devices)
    log = metrics_log.MetricsLog(folder / "metrics.jsonl", run.writers)
    iterator = cast(BatchIterator, iter(run.train))

    def is_validation_step(step: int) -> bool:
        return step % training.eval_every == 0 or step == training.steps

    with contextlib.ExitStack() as stack, contextlib.closing(log):
        checkpoints = stack.enter_context(open_checkpoints(run.title, folder))
        bar = stack.enter_context(progress.bar(run.title, training.steps))
        stack.enter_context(preemption.defer_stop())  # until there is a checkpoint
        state, axes = _first_state(run, params, tx, devices, seed)
        first_step, state = _resume(run, checkpoints, state, iterator, log, start)
        if first_step < start:
            return None
        # Before the first step, or if the run stopped between a checkpoint and its validation.
        if is_validation_step(first_step) and not log.contains(first_step, METRIC):
            evaluation = evaluate(first_step, devices.replicate(state.params, axes.params), bar)
            if evaluation is None:
                raise Preempted
            if first_step or not training.steps:
                checkpoints.save(_to_saved(state), iterator.get_state(), evaluation.selection)
                checkpoints.wait()
            log.append(evaluation.row)
        bar.skip(first_step)
        state = devices.replicate(state, axes)
        teacher_params = None
        if run.teacher:
            teacher, teacher_params = run.teacher
            teacher_params = devices.replicate(teacher_params, teacher.axes(teacher_params))
        at_peak = seconds_at_peak(devices, (run.model, params), run.teacher)
        rates = _learning_rates(training)
        meter = Meter(run.title, checkpoints, log, bar, rates, training.optimizer.max_skipped_updates)
        with disallow_transfers():
            for step in range(first_step + 1, end + 1):
                run.tracer.before_step(step)
                if run.pool and run.pool.batches.is_empty:
                    meter.flush()
                    if not _refill(run.pool, step, state, teacher_params, bar, log, checkpoints):
                        if first_step < step - 1 != checkpoints.latest_step():
                            checkpoints.save(_to_saved(devices.unreplicate(state)), iterator.get_state(), None)
                        raise Preempted
                    meter.restart()
                batch = next(iterator)
                with meter.compiling(batch):
                    state, sums = train(state, devices.shard(batch), teacher_params)
                meter.after_step(step, devices.unreplicate(sums), np.asarray(batch.inputs.index_B), at_peak(batch))
                stop = hosts.should_stop(step, preemption.stop_requested())
                if stop or step == end or is_validation_step(step):
                    meter.flush()
                    evaluation = evaluate(step, state.params, bar) if is_validation_step(step) else None
                    if evaluation is not None:
                        log.append(evaluation.row)
                    selection = evaluation and evaluation.selection
                    checkpoints.save(_to_saved(devices.unreplicate(state)), iterator.get_state(), selection)
                    if stop:
                        raise Preempted
                    meter.restart()
            run.tracer.pause()
        checkpoints.wait()
        if end < training.steps:
            return None
        return _outputs(run, checkpoints, params, hosts.run_on_main(lambda: metrics_log.read(folder / "metrics.jsonl")))


def _refill(
    pool: LivePool,
    step: int,
    state: TrainState,
    teacher_params: Params | None,
    bar: Bar,
    log: metrics_log.MetricsLog,
    checkpoints: Checkpoints,
) -> bool:
    """Write texts of the model's own for the next updates, and log their figures; False if asked to stop.

    Raises:
      KdError: if the texts are beyond the bounds of the stop rule. Their figures are logged before.
    """
    assert teacher_params is not None  # the check of the experiment demands the teacher in the step
    with jax.transfer_guard("allow"):
        while pool.batches.is_empty:  # a pool may have no batches, if nothing fits
            row = pool.refill(step, state.params, teacher_params, bar)
            if row is None:
                return False
            if row:
                log.append(row)
                pool.check_bounds(row, checkpoints.latest_step())
    return True


def compile_train_step(
    recipe: ResolvedRecipe,
    model: Model,
    teacher: Model | None,
    tx: optax.GradientTransformation,
    devices: Devices,
    shapes: int,
) -> Compiled:
    """Return `train_step` compiled for the devices; more than `shapes` traces are an error.

    Args:
      recipe: terms and microbatches.
      model: the network.
      teacher: the teacher's network; None if no term needs it.
      tx: the optimizer.
      devices: the devices that share the step.
      shapes: maximum number of shapes of batches.
    """
    chex.clear_trace_counter()  # it counts per function and process, so it includes models trained before
    step = functools.partial(
        chex.assert_max_traces(train_step, n=shapes),
        model=model,
        terms=recipe.terms,
        tx=tx,
        teacher=teacher,
        microbatches=recipe.training.microbatches,
    )
    return devices.compile_sums(step, donate=True)


def _learning_rates(training: Training) -> Sequence[float]:
    """Return the learning rate of every update, on the host."""
    if not training.steps:
        return ()
    return jax.device_get(jax.vmap(training.optimizer.rate(training.steps))(jnp.arange(training.steps)))


def _first_state(
    run: Run, params: Params, tx: optax.GradientTransformation, devices: Devices, seed: int
) -> tuple[TrainState, TrainState]:
    """Return (the state before the first step, as single arrays; the names of its axes)."""
    # The optimizer creates moments where the parameters are, so the parameters are placed first.
    params = run.model.stack(devices.unreplicate(devices.replicate(params, run.model.axes(params))))
    dropout_key, adapter_key = (jax.random.fold_in(jax.random.key(seed), i) for i in (2, 3))
    adapters = {}
    if run.teacher:
        adapters = init_adapters(adapter_key, run.recipe.terms, (run.model, params), run.teacher, run.valid[0])
    state = init_state(dropout_key, params, tx, adapters)
    axes = state_axes(state, tx, run.model.axes(params))
    return devices.unreplicate(devices.replicate(state, axes)), axes


def _to_saved(state: TrainState) -> TrainState:
    """Return the state as checkpoints contain it: the parameters of each layer apart."""
    return state._replace(params=unstack_layers(state.params))


def open_checkpoints(title: str, folder: Path) -> Checkpoints:
    """Open a folder's checkpoints; unreadable ones are moved aside first."""
    for quarantined in hosts.run_on_main(lambda: [str(path) for path in quarantine_unreadable(folder)]):
        progress.log(f"{title}: unreadable checkpoint moved to {quarantined}; training resumes from an older one")
    return Checkpoints(folder)


def _resume(
    run: Run,
    checkpoints: Checkpoints,
    state: TrainState,
    iterator: BatchIterator,
    log: metrics_log.MetricsLog,
    start: int,
) -> tuple[int, TrainState]:
    """Return (steps done, the state after them), and move the iterator and the log to that step.

    The iterator's data begin at step `start`; a checkpoint of that step has the position in the data before.

    A damaged checkpoint is moved aside; the steps after an older one are repeated to the same bits.
    """
    position: dict[str, Any] = {}
    while (step := checkpoints.latest_step()) is not None:
        try:
            restored, position = checkpoints.restore(_to_saved(state))
            state = restored._replace(params=run.model.stack(restored.params))
            break
        except DamagedCheckpoint as error:
            progress.log(
                f"{run.title}: {error}; moved to {checkpoints.quarantine(step)}, training resumes from an older one"
            )
    log.truncate_after(-1 if step is None else step)
    if step is None:
        return 0, state
    if step != start:
        iterator.set_state(position)
    progress.log(f"{run.title}: resuming from step {step}")
    return step, state


class StepEvaluation(NamedTuple):
    """The evaluation of a step: its row of the log, and the value by which it is chosen (the lower, the better)."""

    row: dict[str, float]
    selection: float


def _evaluation(run: Run, devices: Devices) -> Callable[[int, Params, Bar], StepEvaluation | None]:
    """Return a function of (step, replicated parameters, bar); it returns None if the run was asked to stop."""
    validate, texts, select = _validation(run, devices), run.texts, run.recipe.training.select

    def evaluate(step: int, params: Params, bar: Bar) -> StepEvaluation | None:
        with bar.compiling_once("validation"):
            valid_loss = validate(params)
        if valid_loss is None:
            return None
        row: dict[str, float] = {"step": step, METRIC: valid_loss}
        if texts is None or not step:  # the parameters before the first step are no candidate
            return StepEvaluation(row, selection_value(select, step, valid_loss, None, False))
        start = time.perf_counter()
        headline = texts.score(devices.unreplicate(params), bar)
        if headline is None:
            return None
        if math.isfinite(headline):
            row[f"valid_{texts.metric.name}"] = headline
        row["selection_seconds"] = time.perf_counter() - start
        progress.log(
            f"{run.title}: step {step}: validation cross-entropy {valid_loss:.3f}, {texts.metric.label} "
            f"{headline:.{texts.metric.digits}f} on {texts.count} texts"
        )
        return StepEvaluation(
            row, selection_value(select, step, valid_loss, headline, bool(texts.metric.higher_is_better))
        )

    return evaluate


def _validation(run: Run, devices: Devices) -> Callable[[Params], float | None]:
    """Return a function of replicated parameters: the mean validation cross-entropy in nats per token.

    The function returns None if the run was asked to stop, and raises KdError if the mean is not finite.
    """
    step = devices.compile_sums(functools.partial(eval_step, model=run.model, terms=VALID_TERMS))

    def validate(params: Params) -> float | None:
        sums = []
        for batch in run.valid:
            if preemption.may_stop_alone():
                return None
            sums.append(devices.unreplicate(step(params, devices.shard(batch)))[METRIC])
            jax.block_until_ready(sums[-2:-1])  # at most one step in flight, so that a request to stop is seen in time
        sums = jax.device_get(sums)
        mean = float(
            sum(float(batch_sum.value) for batch_sum in sums) / sum(int(batch_sum.weight) for batch_sum in sums)
        )
        if not math.isfinite(mean):
            raise KdError(
                f"{run.title}: expected a finite validation cross-entropy, got {mean}. Set a lower learning rate and "
                "train again with --force."
            )
        return mean

    return validate


def _outputs(run: Run, checkpoints: Checkpoints, like: Params, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the manifest's outputs. Their figures are those of the log, so an interrupted run has the same."""
    best, select = checkpoints.best_step(), run.recipe.training.select
    assert best is not None  # the last step has a validation
    train_rows = [row for row in rows if "tokens" in row]
    valid_losses = {row["step"]: row[METRIC] for row in rows if METRIC in row}
    seconds = sum(row["seconds"] for row in train_rows)
    best_row = next(row for row in rows if row["step"] == best and METRIC in row)
    return {
        "steps": max(valid_losses),
        "loss_before_first_step": valid_losses[0],
        "select": "cross_entropy" if run.texts is None and select == "headline" else select,
        **{name: value for name, value in best_row.items() if name.startswith("valid_")},
        "selection_seconds": sum(row.get("selection_seconds", 0.0) for row in rows),
        **({"sampling_seconds": sum(row.get("sampling_seconds", 0.0) for row in rows)} if run.pool else {}),
        "train_tokens_per_second": sum(row["tokens"] for row in train_rows) / seconds if seconds else None,
        "best_step": best,
        "dtype": str(jax.tree.leaves(like)[0].dtype),
        "digest": params_digest(checkpoints.best_params(like)),
        "files": checkpoints.param_files(best),
    }
