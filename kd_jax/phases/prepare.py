"""Fetch the texts, train the tokenizer on the training split, and encode every split."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax import config
from kd_jax.artifacts import files, manifest
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.buckets import MAX_LENGTH
from kd_jax.batches.encode import EncodeJob, encode_split
from kd_jax.batches.on_policy import OwnTextRule
from kd_jax.batches.targets import TrainTargets
from kd_jax.batches.workers import IN_PROCESS, Workers
from kd_jax.errors import KdError
from kd_jax.experiment import Recipe, ResolvedExperiment
from kd_jax.models.base import Architecture
from kd_jax.runtime import progress
from kd_jax.sources.base import SPLITS, UNLABELLED, Splits
from kd_jax.sources.rows import ConcatenatedRows, MappedRows, SelectFields, sample, subset, with_progress
from kd_jax.sources.splits import describe_leaks, remove_leaks
from kd_jax.tasks.base import Example, Task
from kd_jax.tasks.eval_set import EvalSet, round_trip_score
from kd_jax.tokenizers import base as tokenizers
from kd_jax.user_code import code_digests

METRIC_EXAMPLES = 32  # held-out references that are scored before training


def run(experiment: ResolvedExperiment, workdir: Workdir, force: bool = False, workers: Workers = IN_PROCESS) -> None:
    """Write workdir/data: the tokenizer, the encoded splits, and the held-out texts.

    A stopped call is resumed from its complete files. The workers change no byte.

    Args:
      experiment: the resolved experiment.
      workdir: the run's folder.
      force: prepare finished data again.
      workers: the processes that do the work.

    Raises:
      KdError: if the source cannot be read, a split is empty, or a held-out example is too long to be measured.
    """
    folder, task = workdir.data, experiment.task
    if not folder.begin(inputs(experiment), force):
        check_splits(experiment, folder.outputs()["counts"])
        progress.log(f"data: already prepared, {folder.path}")
        return
    began = time.perf_counter()
    progress.log(f"data: reading {experiment.source.name}")
    splits = experiment.source.splits(task.fields(), task.held_out_fields(), task.prompt_fields())
    before = {split: len(examples) for split, examples in splits.items()}
    check_splits(experiment, before)
    splits, leaked = remove_leaks(splits, task.fields()[0], workers=workers)
    counts = {split: len(examples) for split, examples in splits.items()}
    for split, count in counts.items():
        if not count:
            raise KdError(f"source: expected examples in the split {split!r} of {experiment.source.name}, got none.")
    # The last of the files is written last.
    if not all((folder.path / name).exists() for name in experiment.tokenizer.files):
        experiment.tokenizer.prepare(training_texts(experiment, splits), folder.path, task.symbols())
    check_metrics(experiment, splits, experiment.tokenizer.load(folder.path))
    job = EncodeJob(folder.path, experiment.tokenizer, task, splits)
    digests = {split: encode_split(job, split, workers) for split in splits}
    for split in SPLITS[1:]:
        write_held_out(experiment, folder.path, split, splits[split])
    tokenizer = experiment.tokenizer.load(folder.path)
    outputs = {
        "dataset": experiment.source.name,
        "counts": counts,
        "dropped_as_seen_in_training": leaked,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizers.digest(tokenizer),
        "start": tokenizer.start,
        "eos": tokenizer.eos,
        "pad": tokenizer.pad,
        "splits": digests,
    }
    folder.finish(outputs, time.perf_counter() - began)
    if leaks := describe_leaks(before, leaked):
        progress.log(f"data: {leaks}")
    progress.log(f"data: {', '.join(f'{n} {split}' for split, n in counts.items())} examples; {folder.path}")


def check_splits(experiment: ResolvedExperiment, counts: Mapping[str, int]) -> None:
    """Check that the data have what the models' targets need; `counts` is split -> number of examples."""
    for name, recipe in experiment.recipes.items():
        try:
            TrainTargets(recipe.pseudo_targets, recipe.references).check(counts)
            check_unlabelled(recipe, counts)
        except KdError as error:
            raise KdError(f"{name if name == TEACHER else f'students.{name}'}.{error}") from error


def check_unlabelled(recipe: Recipe, counts: Mapping[str, int]) -> None:
    """Check that there are examples without a reference if a model writes texts for such."""
    wanted = isinstance(recipe.targets, OwnTextRule) and recipe.targets.unlabelled
    if wanted and not (0 < recipe.references < counts["train"] or counts.get(UNLABELLED)):
        raise KdError(
            "targets.unlabelled: expected examples without a reference, got none. Give the model a share of the "
            "references, such as references=2000, use a source with unlabelled text, or remove it."
        )


def check_metrics(experiment: ResolvedExperiment, splits: Splits, tokenizer: tokenizers.Tokenizer) -> None:
    """Score some held-out references as the tokenizer writes them, and warn if they lose by it.

    So a metric that cannot read the references refuses them here, before any training.
    """
    task, metric = experiment.task, experiment.task.metrics[0]
    examples = splits[experiment.evaluation.split][:METRIC_EXAMPLES]
    outcome = EvalSet(examples, range(len(examples))).round_trip(task, tokenizer)
    if (score := round_trip_score(metric, outcome)) is not None:
        progress.log(
            f"data: warning: {metric.label} of the references is {score:.{metric.digits}f} once the tokenizer has "
            "encoded and decoded them; no model can be better. See tokenizer.normalization and byte_fallback."
        )


def inputs(experiment: ResolvedExperiment) -> dict[str, Any]:
    """Return the fields, and the digests of files and of the user's code, that decide the prepared data."""
    parts = {"source": experiment.source, "task": experiment.task, "tokenizer": experiment.tokenizer}
    flat = {key: value for name, part in parts.items() for key, value in config.flatten(part, name).items()}
    measuring = {("task", field) for field in experiment.task.evaluation_fields}  # these decide no data
    flat = {key: value for key, value in flat.items() if tuple(key.split(".")[:2]) not in measuring}
    sources = (*experiment.source.files(), *experiment.tokenizer.input_files())
    flat |= code_digests(*parts.values())
    return flat | {f"consumed.{path}": manifest.file_digest(path) for path in sources}


def training_texts(experiment: ResolvedExperiment, splits: Splits) -> Iterator[str]:
    """Yield the texts that train the tokenizer: of the training examples, and of examples without references."""
    task = experiment.task
    fields: dict[str, Sequence[str]] = {"train": task.text_fields()}
    if UNLABELLED in splits:
        fields[UNLABELLED] = [field for field in task.text_fields() if field in task.prompt_fields()]
    rows = ConcatenatedRows(*(MappedRows(splits[split], SelectFields(*texts)) for split, texts in fields.items()))
    for example in with_progress(sample(rows, experiment.tokenizer.sample), "read for the tokenizer"):
        yield from example.values()


def write_held_out(experiment: ResolvedExperiment, path: Path, split: str, examples: Sequence[Example]) -> None:
    """Check the lengths of a held-out split's examples, and write their texts beside its tokens."""
    task, owners_N = experiment.task, files.read_array(path / f"{split}.owners.npy")
    lengths = files.read_array(path / f"{split}.lengths.npy")
    for name, recipe in experiment.recipes.items():
        check_lengths(lengths, recipe.model, f"source: {split}", name, subset(examples, owners_N), task)
    fields = (*task.fields(), *task.held_out_fields())
    manifest.write_lines(path / f"{split}.jsonl", ({f: example[f] for f in fields} for example in examples))


def check_lengths(
    lengths: np.ndarray, model: Architecture, where: str, name: str, examples: Sequence[Example], task: Task
) -> None:
    """Check that a model can take every held-out example whole; `lengths` is int [N, 2], of prompt and completion."""
    sizes_N = model.layout.sizes(lengths).max(-1)
    longest, limit = int(sizes_N.argmax()), min(model.context or MAX_LENGTH, MAX_LENGTH)
    if sizes_N[longest] > limit:
        raise KdError(
            f"{where}: expected examples of at most {limit} tokens for {name}, got {sizes_N[longest]} in "
            f"{task.prompt(examples[longest])[:40]!r}... Split or remove it: held-out examples are not cut."
        )
