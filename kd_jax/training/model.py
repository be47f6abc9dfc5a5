"""Training of one model from its recipe to its finished folder, for the phases `teacher` and `student`."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import config
from kd_jax.artifacts import checkpoint, files, metric_writers
from kd_jax.artifacts.digests import params_digest
from kd_jax.artifacts.manifest import Folder, file_digest
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches import pipeline
from kd_jax.batches.buckets import assign_buckets, padding_warning
from kd_jax.batches.on_policy import OnPolicy, OnPolicyBatches, Rounds
from kd_jax.batches.store import Store
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe
from kd_jax.models.base import Model
from kd_jax.models.transformer import COMPUTE_FIELDS, Transformer
from kd_jax.objective.terms import needs_teacher
from kd_jax.provenance import input_fields
from kd_jax.runtime import hosts, progress
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.devices import Devices
from kd_jax.students.init import FromCheckpoint, FromModel, Random, count_parameters, init_from_teacher, random_params
from kd_jax.students.narrow import is_narrower
from kd_jax.students.pretrained import FromHuggingFace, select_vocab_rows
from kd_jax.teaching.teacher import TrainedModel
from kd_jax.teaching.width_scores import width_scores
from kd_jax.tokenizers import base as tokenizers
from kd_jax.training.loop import Run, fit
from kd_jax.training.on_policy import live_pool, on_policy_batches
from kd_jax.training.profile import Profile, tracing
from kd_jax.training.rounds import fit_rounds
from kd_jax.training.selection import ValidationTexts, decodes_texts
from kd_jax.training.selection import manifest_inputs as selection_inputs
from kd_jax.types import Batch, Params
from kd_jax.user_code import code_digests


class TrainingInputs(NamedTuple):
    """Inputs of a model's training besides the data.

    Attributes:
      digests: name -> digest, for the manifest.
      payloads: signal name -> its cache, for the terms that read it.
    """

    digests: Mapping[str, str]
    payloads: Mapping[str, Store]


class Monitoring(NamedTuple):
    """Traces and logs of a training run. They do not affect the model.

    Attributes:
      profile: the first and the last step to trace for xprof; None for none.
      metrics: names of the writers that get the log's rows (kd_jax.artifacts.metric_writers.SINKS).
    """

    profile: tuple[int, int] | None = None
    metrics: Sequence[str] = ()


NO_MONITORING = Monitoring()


def train_model(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    name: str,
    inputs: TrainingInputs,
    force: bool,
    monitoring: Monitoring = NO_MONITORING,
) -> None:
    """Train one model, or resume its training; do nothing if it is finished.

    Args:
      experiment: the experiment.
      workdir: the run's folder.
      name: of the model in `experiment.recipes`.
      inputs: inputs besides the data.
      force: train from the start.
      monitoring: traces and logs.

    Raises:
      KdError: if the folder has other inputs, an earlier phase is not finished, or the first parameters do not fit.
    """
    recipe, folder, data = experiment.recipes[name], workdir.model(name), workdir.data.outputs()
    if not folder.begin(manifest_inputs(experiment, workdir, name, inputs.digests), force):
        progress.log(f"{name}: already trained, {folder.path}")
        return
    start = time.perf_counter()
    devices = make_devices(experiment.backend, experiment.mesh)
    train, valid, skipped = batches(experiment, workdir, recipe, inputs.payloads, devices)
    if skipped:
        progress.log(f"{name}: {skipped} training examples longer than the last bucket are skipped")
    length = int(recipe.model.layout(data["start"]).sizes(np.asarray(experiment.shapes[-1]))[-1])
    divisor = devices.count * recipe.training.microbatches
    field = _field(name)
    if warning := padding_warning(field, recipe.training.tokens_per_batch, length, divisor):
        progress.log(f"warning: {warning}")
    params = initial_params(experiment, workdir, recipe)
    teacher = load_trained(experiment, workdir, TEACHER) if needs_teacher(recipe.terms) else None
    pool = None
    if isinstance(train, OnPolicyBatches):
        assert teacher is not None and isinstance(recipe.targets, OnPolicy)
        pool = live_pool(experiment, workdir, name, train, recipe.targets, devices, teacher[0])
    run = Run(
        title=name,
        recipe=recipe,
        model=recipe.model.build(data["vocab_size"]),
        train=train,
        valid=valid,
        shapes=len(experiment.shapes),
        teacher=teacher,
        pool=pool,
        texts=ValidationTexts(experiment, workdir, recipe) if decodes_texts(experiment.task, recipe.training) else None,
        writers=[metric_writers.ResumableWriter(sink, workdir.metrics, name) for sink in monitoring.metrics],
    )
    first_digest = params_digest(params)
    profile = monitoring.profile and Profile(*monitoring.profile, workdir.profile(name))
    with tracing(profile) as tracer:
        run = run._replace(tracer=tracer)
        for attempt in range(2):
            try:
                if isinstance(recipe.targets, Rounds):
                    outputs = fit_rounds(experiment, workdir, run, train_split(workdir, recipe, {}), params, devices)
                else:
                    outputs = fit(run, params, folder.path, devices, experiment.seed)
                break
            except TimeoutError as error:  # orbax's, where the clock jumps while it saves, as after a suspended machine
                if attempt or hosts.process().count > 1:
                    raise
                progress.log(f"{name}: saving a checkpoint timed out ({error}); training resumes from the last one")
                params = initial_params(experiment, workdir, recipe)  # the first ones may have been donated to a step
    assert outputs is not None  # all steps are trained
    total, outside = count_parameters(params)
    outputs |= {
        "first_parameters": first_digest,
        "parameters": total,
        "parameters_outside_embeddings": outside,
        "skipped_too_long": skipped,
        "bytes": sum(outputs["files"].values()),
    }
    hosts.run_on_main(lambda: tokenizers.copy(experiment.tokenizer, workdir.data, folder.path))
    folder.finish(outputs, time.perf_counter() - start)
    rule = {"headline": experiment.task.metrics[0].label, "cross_entropy": "cross-entropy", "last": "being the last"}
    progress.log(
        f"{name}: validation cross-entropy {outputs['loss_before_first_step']:.3f} before the first step, "
        f"{outputs['valid_cross_entropy']:.3f} at step {outputs['best_step']}, chosen by {rule[outputs['select']]}; "
        f"{folder.path}"
    )


def manifest_inputs(
    experiment: ResolvedExperiment, workdir: Workdir, name: str, digests: Mapping[str, str]
) -> dict[str, Any]:
    """Return all that a model's folder depends on; `digests` are those of its inputs besides the data."""
    recipe, data, fields = experiment.recipes[name], workdir.data.outputs(), input_fields(experiment)
    consumed = {split: data["splits"][split] for split in ("train", "validation")}
    consumed |= {"tokenizer": data["tokenizer"]} | init_digests(recipe) | dict(digests)
    inputs = config.flatten(recipe, _field(name)) | {f"consumed.{key}": value for key, value in consumed.items()}
    inputs |= {field: fields[field] for field in ("seed", "buckets")}
    inputs |= selection_inputs(experiment.task, recipe.training)
    decoding_task = [experiment.task] if decodes_texts(experiment.task, recipe.training) else []
    return inputs | code_digests(recipe, decoding_task)


def _field(name: str) -> str:
    """Return the field of the experiment that is a model's recipe."""
    return name if name == TEACHER else f"students.{name}"


def init_digests(recipe: ResolvedRecipe) -> dict[str, str]:
    """Return name -> digest of what a model's first parameters are read from, outside the workdir."""
    if isinstance(recipe.init, FromCheckpoint):
        return {"checkpoint": Folder(files.as_path(recipe.init.folder), "teacher").outputs()["digest"]}
    if isinstance(recipe.init, FromHuggingFace):
        return {f"weights.{path.name}": file_digest(path) for path in recipe.init.weight_files()}
    return {}


def batches(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    recipe: ResolvedRecipe,
    payloads: Mapping[str, Store],
    devices: Devices,
) -> tuple[Iterable[Batch], list[Batch], int]:
    """Return (endless training batches, validation batches, number of training examples that are too long).

    Args:
      experiment: seed and buckets.
      workdir: the run's folder.
      recipe: of the model.
      payloads: signal name -> its cache.
      devices: the devices that share a batch.
    """
    layout, shapes = recipe.model.layout(workdir.data.outputs()["start"]), experiment.shapes
    split = train_split(workdir, recipe, payloads)
    train: Iterable[Batch]
    if isinstance(recipe.targets, OnPolicy):
        train = on_policy_batches(experiment, workdir, recipe, recipe.targets, split, devices)
    else:
        train = pipeline.TrainBatches(
            split,
            layout,
            shapes,
            tokens_per_batch=recipe.training.tokens_per_batch,
            packed=recipe.training.packed,
            divisor=devices.count * recipe.training.microbatches,
            seed=experiment.seed,
            shard=devices.share,
        ).prefetch()
    validation = pipeline.Split(workdir.data, "validation")
    valid = pipeline.EvalBatches(
        validation, layout, shapes, pipeline.INFERENCE_BATCH_SIZE, devices.count, shard=devices.share
    )
    return train, list(valid), int((assign_buckets(split.lengths, shapes, layout) == len(shapes)).sum())


def train_split(workdir: Workdir, recipe: ResolvedRecipe, payloads: Mapping[str, Store]) -> pipeline.Split:
    """Return the training examples that a model reads; `payloads` is signal name -> its cache."""
    if recipe.pseudo_targets:
        return pipeline.Split(workdir.split(recipe.train_targets.name), "train", payloads)
    return pipeline.with_references(workdir.data, recipe.references, payloads)


def load_trained(experiment: ResolvedExperiment, workdir: Workdir, name: str) -> tuple[Model, Params]:
    """Return a trained model's network and the parameters of its best step."""
    model = experiment.recipes[name].model.build(workdir.data.outputs()["vocab_size"])
    return model, checkpoint.load_params(workdir.model(name), model.init)


def initial_params(experiment: ResolvedExperiment, workdir: Workdir, recipe: ResolvedRecipe) -> Params:
    """Return a model's parameters before its first step.

    Raises:
      KdError: if the teacher, the other student or the checkpoint is missing, or its shapes or vocabulary differ.
    """
    data, init = workdir.data.outputs(), recipe.init
    if isinstance(init, FromModel):
        return _params_from_model(TrainedModel(experiment, workdir, init.name), recipe, init)
    if isinstance(init, Random):
        key = jax.random.fold_in(jax.random.key(experiment.seed), 1)
        return random_params(recipe.model, data["vocab_size"], key)
    if isinstance(init, FromHuggingFace):
        rows_V = tokenizers.load(experiment.tokenizer, workdir.data).rows_V
        assert rows_V is not None  # FromHuggingFace needs the tokenizer of a pretrained model
        params = init.load_params(rows_V)
        cut = tokenizers.is_pretrained(experiment.tokenizer) and experiment.tokenizer.cut
        return select_vocab_rows(params, rows_V) if cut else params
    folder = Folder(files.as_path(init.folder), "teacher")
    inputs = folder.inputs()
    if inputs["consumed.tokenizer"] != data["tokenizer"]:
        ours = tokenizers.load(experiment.tokenizer, workdir.data)
        theirs = tokenizers.load(experiment.tokenizer, folder)
        raise KdError(
            f"init.folder: expected a model with this run's vocabulary, got {folder.path}: "
            f"{tokenizers.describe_difference(ours, theirs)}. Name a model with this run's tokenizer."
        )
    expected = config.flatten(recipe.model, "model")
    for name, value in inputs.items():
        field = name[name.find("model.") :] if ".model." in name else name
        if field in expected and field.removeprefix("model.") not in COMPUTE_FIELDS and value != expected[field]:
            raise KdError(
                f"{field}: expected {value}, that of init.folder {folder.path}, got {expected[field]}. Set it to the "
                "same."
            )
    return checkpoint.load_params(folder, recipe.model.build(data["vocab_size"]).init)


def _params_from_model(source: TrainedModel, student: ResolvedRecipe, init: FromModel) -> Params:
    """Return a student's first parameters, selected from those of the teacher or of another student."""
    source_model, student_model = cast(Transformer, source.architecture), cast(Transformer, student.model)
    scores = None
    if is_narrower(source_model, student_model):
        scores = width_scores(source, init.width, init.sample, student.references)
    # A student trains in float32 even if its teacher has bfloat16 parameters.
    params = jax.tree.map(lambda x: x.astype(jnp.float32), source.devices.unreplicate(source.params))
    return init_from_teacher(init, source_model, student_model, params, source.vocab_size, scores)
