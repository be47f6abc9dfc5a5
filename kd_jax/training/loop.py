"""fit(): the one training loop, for teacher and student.

The loop dispatches step n and then reads what step n-1 measured, so the device never waits for the
host. What it writes is enough to go on from a kill at any moment to the same bits.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

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
from kd_jax.runtime.devices import Devices, disallow_transfers
from kd_jax.training.meter import Meter
from kd_jax.training.peak import seconds_at_peak
from kd_jax.training.profile import Profile, tracing
from kd_jax.training.step import TrainState, eval_step, init_adapters, init_state, state_axes, train_step
from kd_jax.types import Batch, Params

# What decides between checkpoints, and what every model is compared by: no smoothing, no teacher.
VALID_TERMS = {METRIC: Term(cross_entropy)}


class Run(NamedTuple):
    """What a model is trained on.

    Attributes:
      title: shown beside the bar.
      recipe: how.
      model: the network.
      train: host Batches without end, from a grain dataset whose iterator's state can be saved.
      valid: host Batches of the validation split.
      shapes: how many shapes of training batch there may be; one more is a bug, since each is compiled.
      teacher: (network, parameters) of the teacher in the step, where a term needs one; it is only read.
      profile: which steps are traced; None for none.
      writers: that the log's rows go to besides.
    """

    title: str
    recipe: ResolvedRecipe
    model: Model
    train: Iterable[Batch]
    valid: list[Batch]
    shapes: int
    teacher: tuple[Model, Params] | None = None
    profile: Profile | None = None
    writers: Sequence[metrics_log.MetricWriter] = ()


def fit(run: Run, params: Params, folder: Path, devices: Devices, seed: int) -> dict[str, Any]:
    """Trains from `params`, or goes on from the last checkpoint in `folder`.

    Args:
      run: what is trained on what.
      params: its first parameters.
      folder: where checkpoints/ and metrics.jsonl are written.
      devices: what the steps are spread over.
      seed: decides dropout, and the terms' adapters.

    Returns:
      What the manifest keeps, as `_outcome`.

    Raises:
      KdError: if the loss is not finite; names the step, the terms and the last good checkpoint.
      Preempted: if the run was asked to stop, after the checkpoint of the step that was under way.
    """
    training = run.recipe.training
    tx = training.optimizer.build(training.steps)
    one_step, validate = training_step(run, tx, devices), _validation(run, devices)
    log, iterator = metrics_log.MetricsLog(folder / "metrics.jsonl", run.writers), iter(run.train)
    due = lambda step: step % training.eval_every == 0 or step == training.steps  # noqa: E731
    with contextlib.ExitStack() as stack, contextlib.closing(log):
        checkpoints = stack.enter_context(_opened(run.title, folder))
        bar = stack.enter_context(progress.bar(run.title, training.steps))
        stack.enter_context(preemption.defer_stop())  # until there is a checkpoint
        state, places = _first_state(run, params, tx, devices, seed)
        begun, state = _begin(run, checkpoints, state, iterator, log)
        if due(begun) and not log.contains(begun, METRIC):  # before the first step, or where preemption cut it off
            with bar.compiling("validation"):
                measured = validate(devices.replicate(state.params, places.params))
            if measured is None:
                raise Preempted
            if begun or not training.steps:
                checkpoints.save(_saved(state), iterator.get_state(), measured)
                checkpoints.wait()
            log.append({"step": begun, METRIC: measured})
        bar.skip(begun)
        state = devices.replicate(state, places)
        teacher_params = run.teacher and devices.replicate(run.teacher[1], run.teacher[0].axes(run.teacher[1]))
        at_peak = seconds_at_peak(devices, (run.model, params), run.teacher)
        meter = Meter(run.title, checkpoints, log, bar, _rates(training), training.optimizer.max_skipped_updates)
        with disallow_transfers(), tracing(run.profile) as tracer:
            for step in range(begun + 1, training.steps + 1):
                tracer.before(step)
                batch = next(iterator)
                with meter.compiling(batch):
                    state, sums = one_step(state, devices.shard(batch), teacher_params)
                meter.after(step, devices.unreplicate(sums), batch.inputs.index_B, at_peak(batch))
                if (stops := hosts.should_stop(step, preemption.stop_requested())) or due(step):
                    meter.flush()
                    measured = validate(state.params) if due(step) else None
                    if measured is not None:
                        log.append({"step": step, METRIC: measured})
                    checkpoints.save(_saved(devices.unreplicate(state)), iterator.get_state(), measured)
                    if stops:
                        raise Preempted
                    meter.restart()
        checkpoints.wait()
        return _outcome(checkpoints, params, hosts.run_on_main(lambda: metrics_log.read(folder / "metrics.jsonl")))


def training_step(run: Run, tx: Any, devices: Devices) -> Callable:
    """The compiled step; one trace more than `shapes` is an error."""
    chex.clear_trace_counter()  # it counts per function and process, and another model may have been trained
    step = functools.partial(
        chex.assert_max_traces(train_step, n=run.shapes),
        model=run.model,
        terms=run.recipe.terms,
        tx=tx,
        teacher=run.teacher and run.teacher[0],
        microbatches=run.recipe.training.microbatches,
    )
    return devices.compile_sums(step, donate=True)


def _rates(training: Training) -> Any:
    """The learning rate of every update, on the host."""
    if not training.steps:
        return ()
    return jax.device_get(jax.vmap(training.optimizer.rate(training.steps))(jnp.arange(training.steps)))


def _first_state(run: Run, params: Params, tx: Any, devices: Devices, seed: int) -> tuple[TrainState, TrainState]:
    """(the state before the first step, with the terms' adapters, as single arrays; names of its axes)."""
    # So moments are made where their parameters are.
    params = run.model.stack(devices.unreplicate(devices.replicate(params, run.model.axes(params))))
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in (2, 3)]
    adapters = {}
    if run.teacher:
        adapters = init_adapters(keys[1], run.recipe.terms, (run.model, params), run.teacher, run.valid[0])
    state = init_state(keys[0], params, tx, adapters)
    places = state_axes(state, tx, run.model.axes(params))
    return devices.unreplicate(devices.replicate(state, places)), places


def _saved(state: TrainState) -> TrainState:
    """The state as checkpoints have it: of its parameters every layer has its own, however the step holds them."""
    return state._replace(params=unstack_layers(state.params))


def _opened(title: str, folder: Path) -> Checkpoints:
    """A folder's checkpoints, without those that no longer let themselves be opened."""
    for aside in hosts.run_on_main(lambda: [str(path) for path in quarantine_unreadable(folder)]):
        progress.log(f"{title}: a checkpoint cannot be opened, it is {aside} now; training goes on from an older one")
    return Checkpoints(folder)


def _begin(
    run: Run, checkpoints: Checkpoints, state: TrainState, iterator: Any, log: metrics_log.MetricsLog
) -> tuple[int, TrainState]:
    """(steps already made, the state after them); brings the iterator and the log to the same step.

    A damaged checkpoint is set aside: what comes after an older one is made anew, to the same bits.
    """
    while (begun := checkpoints.latest_step()) is not None:
        try:
            restored, position = checkpoints.restore(_saved(state))
            state = restored._replace(params=run.model.stack(restored.params))
            break
        except DamagedCheckpoint as error:
            progress.log(
                f"{run.title}: {error}; it is {checkpoints.quarantine(begun)} now, training goes on from an older one"
            )
    log.truncate_after(-1 if begun is None else begun)
    if begun is None:
        return 0, state
    iterator.set_state(position)
    progress.log(f"{run.title}: goes on from step {begun}")
    return begun, state


def _validation(run: Run, devices: Devices) -> Callable[[Params], float | None]:
    """Copied parameters to the mean cross-entropy of the validation split, in nats a token; None if asked to stop.

    Raises KdError, in use, where it is not finite.
    """
    step = devices.compile_sums(functools.partial(eval_step, model=run.model, terms=VALID_TERMS))

    def validate(params: Params) -> float | None:
        sums = []
        for batch in run.valid:
            if preemption.may_stop_alone():
                return None
            sums.append(devices.unreplicate(step(params, devices.shard(batch)))[METRIC])
            jax.block_until_ready(sums[-2:-1])  # one is under way while the next is cut, no more: asked in time
        sums = jax.device_get(sums)
        mean = float(sum(float(one.value) for one in sums) / sum(int(one.weight) for one in sums))
        if not math.isfinite(mean):
            raise KdError(
                f"{run.title}: the validation cross-entropy is {mean}: its parameters are of no use; try a lower "
                "learning rate, with --force"
            )
        return mean

    return validate


def _outcome(checkpoints: Checkpoints, like: Params, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest keeps; its figures are the log's, so they are the same for a run that was cut in two."""
    best = checkpoints.best_step()
    trained = [row for row in rows if "tokens" in row]
    validated = {row["step"]: row[METRIC] for row in rows if METRIC in row}
    seconds = sum(row["seconds"] for row in trained)
    return {
        "steps": max(validated),
        "loss_before_first_step": validated[0],
        METRIC: validated[best],
        "train_tokens_per_second": sum(row["tokens"] for row in trained) / seconds if seconds else None,
        "best_step": best,
        "dtype": str(jax.tree.leaves(like)[0].dtype),
        "digest": params_digest(checkpoints.best_params(like)),
        "files": checkpoints.param_files(best),
    }
