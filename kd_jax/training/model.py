"""From a recipe to a finished model folder: what the phases `teacher` and `student` share."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from kd_jax import config
from kd_jax.artifacts import checkpoint, manifest, runlog
from kd_jax.data import pipeline
from kd_jax.data.store import Store
from kd_jax.data.tokenizers import Tokenizer, first_difference
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, Recipe, data_folder
from kd_jax.models.init import FromCheckpoint, FromTeacher, count_parameters, random_params, shrink
from kd_jax.objective.terms import needs_teacher
from kd_jax.parallel.base import Parallel, host, parallel
from kd_jax.training.loop import fit
from kd_jax.types import Batch, Model, Params

VALID_BATCH = 64


def train_model(
    phase: str,
    name: str,
    recipe: Recipe,
    experiment: Experiment,
    workdir: Path,
    folder: Path,
    *,
    consumed: Mapping[str, str],
    payloads: Mapping[str, Store],
    force: bool,
) -> None:
    """Trains one model, or goes on with it, or finds it done.

    Args:
      phase: the subcommand, for messages.
      name: the recipe's place in the experiment, such as "students.student_kd".
      recipe: what is trained, and how.
      experiment, workdir: the run.
      folder: where the model is kept.
      consumed: digests of what goes in besides the data.
      payloads: the signal caches that the terms read, by signal name.
      force: redo it from nothing.

    Raises:
      KdError: if the folder was made with other inputs, an earlier phase is missing, or the first
        parameters do not fit.
    """
    data = manifest.read(workdir / "data", "prepare")["outputs"]
    splits = {split: data["splits"][split] for split in ("train", "validation")}
    digests = splits | {"tokenizer": data["tokenizer"]} | dict(consumed)
    inputs = config.flatten(recipe, name) | {f"consumed.{key}": value for key, value in digests.items()}
    inputs |= {"seed": experiment.seed, "buckets": list(experiment.buckets)}
    if not manifest.start(folder, phase, inputs, force):
        runlog.say(f"{name}: already trained, {folder}")
        return
    began = time.perf_counter()
    spread = parallel(experiment.backend)
    train, valid = batches(experiment, recipe, workdir, payloads, spread)
    longest = experiment.buckets[-1]
    left_out = int((pipeline.Split(data_folder(workdir, recipe.targets), "train").lengths > longest).sum())
    if left_out:
        runlog.say(f"{name}: {left_out} training examples of more than {longest} tokens are left out")
    params = initial_params(experiment, recipe, workdir, data)
    model = recipe.model.build(data["vocab_size"])
    devices = {"spread": spread, "seed": experiment.seed, "shapes": len(experiment.buckets)}
    if needs_teacher(recipe.terms):
        devices["teacher"] = trained_teacher(experiment, workdir, data["vocab_size"])
    outputs = fit(name, recipe, model, params, train, valid, folder, **devices)
    total, outside = count_parameters(params)
    outputs |= {"parameters": total, "parameters_outside_embeddings": outside, "left_out_as_too_long": left_out}
    shutil.copyfile(workdir / "data" / "tokenizer.model", folder / "tokenizer.model")
    manifest.finish(folder, phase, outputs, time.perf_counter() - began)
    runlog.say(
        f"{name}: validation cross-entropy {outputs['loss_before_first_step']:.3f} before the first step, "
        f"{outputs['valid_cross_entropy']:.3f} at best (step {outputs['best_step']}); {folder}"
    )


def batches(
    experiment: Experiment, recipe: Recipe, workdir: Path, payloads: Mapping[str, Store], spread: Parallel
) -> tuple[Any, list[Batch]]:
    """(training batches without end, the validation split's batches), on the host."""
    shard_index, shard_count = host()
    train = pipeline.train_batches(
        pipeline.Split(data_folder(workdir, recipe.targets), "train", payloads),
        buckets=experiment.buckets,
        tokens_per_batch=recipe.training.tokens_per_batch,
        divisor=spread.devices * shard_count * recipe.training.microbatches,
        seed=experiment.seed,
        shard_index=shard_index,
        shard_count=shard_count,
    )
    valid = pipeline.EvalBatches(
        pipeline.Split(workdir / "data", "validation"), experiment.buckets, VALID_BATCH, divisor=spread.devices
    )
    return train, list(valid)


def trained_teacher(experiment: Experiment, workdir: Path, vocab_size: int) -> tuple[Model, Params]:
    """The teacher's network and its best parameters."""
    model = experiment.teacher.model.build(vocab_size)
    return model, checkpoint.load_params(workdir / "teacher", "teacher", model)


def initial_params(experiment: Experiment, recipe: Recipe, workdir: Path, data: Mapping[str, Any]) -> Params:
    """A model's parameters before its first step, wherever they come from.

    Raises:
      KdError: if the teacher or the checkpoint is missing, or has other shapes or another vocabulary.
    """
    if isinstance(recipe.init, FromTeacher):
        _, teacher = trained_teacher(experiment, workdir, data["vocab_size"])
        return shrink(recipe.init, experiment.teacher.model, recipe.model, teacher, data["vocab_size"])
    key = jax.random.fold_in(jax.random.key(experiment.seed), 1)
    if not isinstance(recipe.init, FromCheckpoint):
        return random_params(recipe.model, data["vocab_size"], key)
    folder = Path(recipe.init.folder)
    theirs = manifest.read(folder, "teacher")["inputs"]
    if theirs["consumed.tokenizer"] != data["tokenizer"]:
        ours = Tokenizer(workdir / "data" / "tokenizer.model")
        differing = first_difference(ours, Tokenizer(folder / "tokenizer.model"))
        raise KdError(f"init.folder {folder}: another vocabulary ({differing}); take a model of this run's tokeniser")
    wanted = config.flatten(recipe.model, "model")
    for name, seen in theirs.items():
        field = name[name.find("model.") :] if ".model." in name else name
        if field in wanted and field != "model.dropout" and seen != wanted[field]:
            raise KdError(
                f"init.folder {folder}: its {field} is {seen}, this student wants {wanted[field]}; take the same"
            )
    return checkpoint.load_params(folder, "teacher", recipe.model.build(data["vocab_size"]))
