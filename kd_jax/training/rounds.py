"""Training in rounds: the student writes texts, the teacher's signals for them are cached, the student trains on them.

The optimizer and its schedule go on from round to round. Each round's texts and signals are folders with manifests, so
a killed run resumes in the round where it was, to the same bits.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.artifacts.checkpoint import DamagedCheckpoint
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches import pipeline
from kd_jax.batches.on_policy import Rounds
from kd_jax.batches.store import Store
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment
from kd_jax.objective.terms import cached_signals
from kd_jax.runtime.devices import Devices
from kd_jax.teaching.rounds import write_signals, write_texts
from kd_jax.teaching.teacher import Teacher
from kd_jax.training.loop import Run, fit, open_checkpoints
from kd_jax.training.on_policy import pooled_examples
from kd_jax.types import Params


def fit_rounds(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    run: Run,
    split: pipeline.Split,
    params: Params,
    devices: Devices,
) -> dict[str, Any]:
    """Train a student in rounds, or resume; return the outputs of its manifest.

    Args:
      experiment: the resolved experiment.
      workdir: the run's folder.
      run: the student; its training batches are not read.
      split: its examples with a target.
      params: its first parameters.
      devices: the devices that share the steps.

    Raises:
      KdError: as `fit`, or if the texts of a round whose training has begun are missing.
      Preempted: if the run was asked to stop; the same call resumes it.
    """
    name, recipe, folder = run.title, run.recipe, workdir.model(run.title)
    rule, training = recipe.targets, recipe.training
    assert isinstance(rule, Rounds)
    firsts = rule.first_steps(training.steps)
    examples = pooled_examples(experiment, workdir, recipe, rule, split)
    params = jax.device_get(params)  # a training step takes the memory of those on the device
    while True:
        step, current = _latest(run.title, folder.path, params)
        number = max(n for n in range(rule.count) if firsts[n] <= step)
        if step == firsts[number]:
            write_texts(experiment, workdir, name, number, examples, current)
            write_signals(Teacher(experiment, workdir), name, number)
        elif not workdir.round(name, number).finished():
            raise KdError(
                f"{workdir.round(name, number).path}: expected the texts of round {number + 1}, whose training has "
                f"begun, missing. Run `student --force --only {name}` again."
            )
        caches = {
            signal: Store(workdir.round_cache(name, number, signal).path, "records")
            for signal in cached_signals(recipe.terms)
        }
        batches = pipeline.TrainBatches(
            pipeline.Split(workdir.round(name, number), "train", caches),
            recipe.model.layout(workdir.data.outputs()["start"]),
            experiment.shapes,
            tokens_per_batch=training.tokens_per_batch,
            packed=training.packed,
            divisor=devices.count * training.microbatches,
            seed=experiment.seed,
            shard=devices.share,
        ).prefetch()
        span = firsts[number], firsts[number + 1]
        outputs = fit(run._replace(train=batches), params, folder.path, devices, experiment.seed, span)
        if outputs is not None:
            rounds = [workdir.round(name, n).outputs() for n in range(rule.count)]
            seconds = sum(one["sampling_seconds"] for one in rounds)
            return outputs | {"rounds": [one["digest"] for one in rounds], "sampling_seconds": seconds}


def _latest(title: str, folder: Path, params: Params) -> tuple[int, Params]:
    """Return (updates, parameters) of the last checkpoint that can be read; (0, `params`) without one."""
    with open_checkpoints(title, folder) as checkpoints:
        while (step := checkpoints.latest_step()) is not None:
            try:
                return step, checkpoints.params(step, params)
            except DamagedCheckpoint:
                checkpoints.quarantine(step)
    return 0, jax.tree.map(jnp.asarray, params)
