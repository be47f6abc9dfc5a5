"""From a recipe to a finished model folder: what the phases `teacher` and `student` share."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax import config
from kd_jax.artifacts import checkpoint, files, metric_writers
from kd_jax.artifacts.digests import params_digest
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches import pipeline
from kd_jax.batches.buckets import assign_buckets
from kd_jax.batches.store import Store
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe, targets_name
from kd_jax.models.base import Model
from kd_jax.models.transformer import COMPUTE_FIELDS
from kd_jax.objective.terms import needs_teacher
from kd_jax.runtime import hosts, progress
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.devices import Devices
from kd_jax.students.init import count_parameters, random_params, shrink
from kd_jax.students.narrow import narrower
from kd_jax.students.pretrained import cut_rows
from kd_jax.teaching.teacher import Teacher
from kd_jax.teaching.width_scores import width_scores
from kd_jax.tokenizers import base as tokenizers
from kd_jax.training.loop import Run, fit
from kd_jax.training.profile import Profile
from kd_jax.types import Batch, Params


class Sources(NamedTuple):
    """What goes into a model besides the data.

    Attributes:
      consumed: name -> digest.
      payloads: the signal caches that the terms read, by signal name.
    """

    consumed: Mapping[str, str]
    payloads: Mapping[str, Store]


class Monitoring(NamedTuple):
    """What is written of a training for a person to look at; it changes nothing that is trained.

    Attributes:
      profile: the first and the last step of a trace, for xprof; None for none.
      metrics: names of artifacts.writers.SINKS that get the log's rows.
    """

    profile: tuple[int, int] | None = None
    metrics: Sequence[str] = ()


NO_MONITORING = Monitoring()


def train_model(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    name: str,
    sources: Sources,
    force: bool,
    watched: Monitoring = NO_MONITORING,
) -> None:
    """Trains one model, or goes on with it, or finds it done.

    Args:
      experiment, workdir: the run.
      name: which of the experiment's recipes.
      sources: what goes in besides the data.
      force: redo it from nothing.
      watched: what is written for a person to look at.

    Raises:
      KdError: if the folder was made with other inputs, an earlier phase is missing, or the first
        parameters do not fit.
    """
    recipe, folder, data = experiment.recipes[name], workdir.model(name), workdir.data.outputs()
    field = name if name == TEACHER else f"students.{name}"
    digests = {split: data["splits"][split] for split in ("train", "validation")}
    digests |= {"tokenizer": data["tokenizer"]} | dict(sources.consumed)
    inputs = config.flatten(recipe, field) | {f"consumed.{key}": value for key, value in digests.items()}
    inputs |= {"seed": experiment.seed, "buckets": [list(bucket) for bucket in experiment.shapes]}
    if not folder.begin(inputs, force):
        progress.log(f"{name}: already trained, {folder.path}")
        return
    began = time.perf_counter()
    devices = make_devices(experiment.backend, experiment.mesh)
    train, valid, left_out = batches(experiment, workdir, recipe, sources.payloads, devices)
    if left_out:
        progress.log(f"{name}: {left_out} training examples longer than the last bucket are left out")
    params = initial_params(experiment, workdir, recipe)
    first = params_digest(params)
    model = recipe.model.build(data["vocab_size"])
    teacher = load_trained(experiment, workdir, TEACHER) if needs_teacher(recipe.terms) else None
    profile = watched.profile and Profile(*watched.profile, workdir.profile(name))
    others = [metric_writers.ResumableWriter(sink, workdir.metrics, name) for sink in watched.metrics]
    run = Run(name, recipe, model, train, valid, len(experiment.shapes), teacher, profile, others)
    outputs = fit(run, params, folder.path, devices, experiment.seed)
    total, outside = count_parameters(params)
    outputs |= {"first_parameters": first}
    outputs |= {"parameters": total, "parameters_outside_embeddings": outside, "left_out_as_too_long": left_out}
    outputs["bytes"] = sum(outputs["files"].values())
    hosts.run_on_main(lambda: tokenizers.copy(experiment.tokenizer, workdir.data, folder.path))
    folder.finish(outputs, time.perf_counter() - began)
    progress.log(
        f"{name}: validation cross-entropy {outputs['loss_before_first_step']:.3f} before the first step, "
        f"{outputs['valid_cross_entropy']:.3f} at best (step {outputs['best_step']}); {folder.path}"
    )


def batches(
    experiment: ResolvedExperiment, workdir: Workdir, recipe: ResolvedRecipe, payloads: Mapping[str, Store], devices: Devices
) -> tuple[Any, list[Batch], int]:
    """(training batches without end, the validation split's, how many training examples are too long), on the host."""
    layout, shapes = recipe.model.layout(workdir.data.outputs()["start"]), experiment.shapes
    split = pipeline.Split(workdir.split(targets_name(recipe.targets)), "train", payloads)
    train = pipeline.train_batches(
        split,
        layout,
        shapes,
        tokens_per_batch=recipe.training.tokens_per_batch,
        packed=recipe.training.packed,
        divisor=devices.count * recipe.training.microbatches,
        seed=experiment.seed,
        shard=devices.share,
    )
    validation = pipeline.Split(workdir.data, "validation")
    valid = pipeline.EvalBatches(validation, layout, shapes, pipeline.INFERENCE_BATCH_SIZE, devices.count, shard=devices.share)
    return train, list(valid), int((assign_buckets(split.lengths, shapes, layout) == len(shapes)).sum())


def load_trained(experiment: ResolvedExperiment, workdir: Workdir, name: str) -> tuple[Model, Params]:
    """A trained model's network and its best parameters."""
    model = experiment.recipes[name].model.build(workdir.data.outputs()["vocab_size"])
    return model, checkpoint.load_params(workdir.model(name), model.init)


def shrunk(teacher: Teacher, recipe: ResolvedRecipe) -> Params:
    """A student's first parameters as a selection of the teacher's; its activations are read where widths differ."""
    init, architecture = recipe.init, teacher.experiment.teacher.model
    differs = narrower(architecture, recipe.model)
    scores = width_scores(teacher, init.width, init.sample) if differs else None
    # A student is trained in float32, whatever its teacher is kept in.
    params = jax.tree.map(lambda x: x.astype(jnp.float32), teacher.devices.unreplicate(teacher.params))
    return shrink(init, architecture, recipe.model, params, teacher.vocab_size, scores)


def initial_params(experiment: ResolvedExperiment, workdir: Workdir, recipe: ResolvedRecipe) -> Params:
    """A model's parameters before its first step, wherever they come from.

    Raises:
      KdError: if the teacher or the checkpoint is missing, or has other shapes or another vocabulary.
    """
    data = workdir.data.outputs()
    if recipe.init.origin == "teacher":
        return shrunk(Teacher(experiment, workdir), recipe)
    if recipe.init.origin == "chance":
        key = jax.random.fold_in(jax.random.key(experiment.seed), 1)
        return random_params(recipe.model, data["vocab_size"], key)
    if recipe.init.origin == "folder":
        tokenizer = tokenizers.load(experiment.tokenizer, workdir.data)
        params = recipe.init.params(tokenizer.rows_V)
        return cut_rows(params, tokenizer.rows_V) if experiment.tokenizer.cut else params
    folder = Folder(files.as_path(recipe.init.folder), "teacher")
    theirs = folder.inputs()
    if theirs["consumed.tokenizer"] != data["tokenizer"]:
        ours, settings = tokenizers.load(experiment.tokenizer, workdir.data), experiment.tokenizer
        differing = tokenizers.describe_difference(ours, tokenizers.load(settings, folder))
        raise KdError(
            f"init.folder {folder.path}: another vocabulary ({differing}); take a model of this run's tokeniser"
        )
    wanted = config.flatten(recipe.model, "model")
    for name, seen in theirs.items():
        field = name[name.find("model.") :] if ".model." in name else name
        if field in wanted and field.removeprefix("model.") not in COMPUTE_FIELDS and seen != wanted[field]:
            raise KdError(
                f"init.folder {folder.path}: its {field} is {seen}, this student wants {wanted[field]}; take the same"
            )
    return checkpoint.load_params(folder, recipe.model.build(data["vocab_size"]).init)
