"""Training in rounds: the student writes texts, the teacher's signals for them are cached, the student trains on them.

The optimizer and its schedule go on from round to round. Each round's texts and signals are folders with manifests, so
a killed run resumes in the round where it was, to the same bits.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.artifacts.checkpoint import DamagedCheckpoint
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches import pipeline
from kd_jax.batches.on_policy import Rounds
from kd_jax.batches.store import Store
from kd_jax.errors import KdError, ScoresNeeded
from kd_jax.experiment import ResolvedExperiment
from kd_jax.objective.terms import cached_signals
from kd_jax.runtime import progress
from kd_jax.runtime.devices import Devices
from kd_jax.teaching.rounds import scores_request, write_signals, write_texts
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
      ScoresNeeded: if the teacher is elsewhere and its scores of the current round's texts are not imported yet.
      Preempted: if the run was asked to stop; the same call resumes it.
    """
    name, recipe, folder = run.title, run.recipe, workdir.model(run.title)
    rule, training = recipe.targets, recipe.training
    assert isinstance(rule, Rounds)
    firsts = rule.first_steps(training.steps)
    params = jax.device_get(params)  # a training step takes the memory of those on the device
    while True:
        number, texts = write_current_texts(experiment, workdir, name, split, params)
        caches = {signal: workdir.round_cache(name, number, signal) for signal in cached_signals(recipe.terms)}
        if not workdir.teacher_is_imported:
            write_signals(Teacher(experiment, workdir), name, number)
        elif not all(cache.finished() for cache in caches.values()):
            raise ScoresNeeded(scores_request(name, number, rule, texts))
        batches = pipeline.TrainBatches(
            pipeline.Split(texts, "train", {key: Store(cache.path, "records") for key, cache in caches.items()}),
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


def write_current_texts(
    experiment: ResolvedExperiment, workdir: Workdir, name: str, split: pipeline.Split, params: Params
) -> tuple[int, Folder]:
    """Let a student write the texts of its current round, unless they are there; return (the round's number, folder).

    Args:
      experiment: the resolved experiment.
      workdir: the run's folder.
      name: of the student, whose targets are Rounds.
      split: its examples with a target.
      params: its first parameters; those of its last checkpoint write the texts of later rounds.

    Raises:
      KdError: if the texts of a round whose training has begun are missing.
      Preempted: if the run was asked to stop; the same call begins the round's texts again.
    """
    recipe = experiment.recipes[name]
    rule = recipe.targets
    assert isinstance(rule, Rounds)
    firsts = rule.first_steps(recipe.training.steps)
    step, current = _latest(name, workdir.model(name).path, params)
    number = max(n for n in range(rule.count) if firsts[n] <= step)
    folder = workdir.round(name, number)
    if step == firsts[number]:
        examples = pooled_examples(experiment, workdir, recipe, rule, split)
        write_texts(experiment, workdir, name, number, examples, current)
    elif not folder.finished():
        raise KdError(
            f"{folder.path}: expected the texts of round {number + 1}, whose training has begun, missing. Run "
            f"`student --force --only {name}` again."
        )
    return number, folder


def _latest(title: str, folder: Path, params: Params) -> tuple[int, Params]:
    """Return (updates, parameters) of the last checkpoint that can be read; (0, `params`) without one."""
    with open_checkpoints(title, folder) as checkpoints:
        while (step := checkpoints.latest_step()) is not None:
            try:
                # Checked: texts of parameters that the training does not resume from would be of no use.
                return step, jax.tree.map(jnp.asarray, checkpoints.checked_params(step, params))
            except DamagedCheckpoint as error:
                progress.log(f"{title}: {error}; moved to {checkpoints.quarantine(step)}, an older one is read")
    return 0, jax.tree.map(jnp.asarray, params)
