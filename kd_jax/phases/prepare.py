"""Fetch the text, train the tokeniser on the training split, and encode every split."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from kd_jax import config
from kd_jax.artifacts import manifest, runlog
from kd_jax.artifacts.workdir import Workdir
from kd_jax.data import store
from kd_jax.data.buckets import LONGEST
from kd_jax.data.held_out import SPLITS, UNLABELLED, Splits, leak_sentence, without_leaks
from kd_jax.data.tokenizers import base as tokenizers
from kd_jax.data.tokenizers.base import Tokenizer
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment
from kd_jax.models.base import Architecture
from kd_jax.tasks.base import ENCODED, Encoded, Example, Task


def run(experiment: Experiment, workdir: Workdir, force: bool = False) -> None:
    """Leaves workdir/data: the tokeniser, the encoded splits, and the held-out text.

    Raises:
      KdError: if the source cannot be read, a split is empty, or a held-out example is too long to be measured.
    """
    folder, task = workdir.data, experiment.task
    if not folder.begin(inputs(experiment), force):
        runlog.say(f"data: already prepared, {folder.path}")
        return
    folder.begin(inputs(experiment), force=True)  # what a kill left half-way is quickly made again
    began = time.perf_counter()
    runlog.say(f"data: reading {experiment.source.name}")
    splits = experiment.source.splits(task.fields(), task.held_out_fields(), task.prompt_fields())
    splits, leaked = without_leaks(splits, task.fields()[0])
    for name, recipe in experiment.students.items():
        if recipe.targets:
            try:
                recipe.targets.check_splits(splits)
            except KdError as error:
                raise KdError(f"{name}: {error}") from error
    for split, examples in splits.items():
        if not examples:
            raise KdError(f"source: no examples in the split {split!r} of {experiment.source.name}; give it some")
    experiment.tokenizer.prepare(training_texts(task, splits), folder.path, task.symbols())
    tokenizer = experiment.tokenizer.load(folder.path)
    digests = {split: encode(experiment, workdir, examples, tokenizer, split) for split, examples in splits.items()}
    counts = {split: len(examples) for split, examples in splits.items()}
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
    lost = leak_sentence({split: counts[split] + leaked[split] for split in counts}, leaked)
    if lost:
        runlog.say(f"data: {lost}")
    runlog.say(f"data: {', '.join(f'{n} {split}' for split, n in counts.items())} examples; {folder.path}")


def inputs(experiment: Experiment) -> dict[str, Any]:
    """What decides the prepared data."""
    parts = {"source": experiment.source, "task": experiment.task, "tokenizer": experiment.tokenizer}
    flat = {key: value for name, part in parts.items() for key, value in config.flatten(part, name).items()}
    measuring = {("task", field) for field in experiment.task.measuring}  # which decides nothing here
    flat = {key: value for key, value in flat.items() if tuple(key.split(".")[:2]) not in measuring}
    files = (*experiment.source.files(), *experiment.tokenizer.sources())
    return flat | {f"consumed.{path}": manifest.file_digest(path) for path in files}


def training_texts(task: Task, splits: Splits) -> Iterator[str]:
    """What the tokeniser is trained on: the texts of the training examples, and of those without references."""
    for example in splits["train"]:
        yield from (example[field] for field in task.text_fields())
    if UNLABELLED in splits:
        prompted = [field for field in task.text_fields() if field in task.prompt_fields()]
        for example in splits[UNLABELLED]:
            yield from (example[field] for field in prompted)


def encode(experiment: Experiment, workdir: Workdir, examples: list[Example], tokenizer: Tokenizer, split: str) -> str:
    """Writes one encoded split, its lengths, the example that each belongs to and, of held-out ones, the text.

    Returns:
      The split's digest.
    """
    task, path = experiment.task, workdir.data.path
    encoded: list[Encoded] = []
    owners: list[int] = []  # several where a long text is cut
    with runlog.progress(f"encode {split}", len(examples)) as bar:
        for number, example in enumerate(examples):
            parts = [_unlabelled(task, example, tokenizer)] if split == UNLABELLED else task.encode(example, tokenizer)
            for part in parts:
                encoded.append(part)
                owners.append(number)
            bar.advance(1)
    records = lambda start, stop: (one._asdict() for one in encoded[start:stop])  # noqa: E731
    digest = store.write(path, split, ENCODED, len(encoded), records)
    lengths = np.asarray([(len(one.prompt), len(one.completion)) for one in encoded], np.int32)
    np.save(path / f"{split}.lengths.npy", lengths)
    np.save(path / f"{split}.owners.npy", np.asarray(owners, np.int32))
    if split in SPLITS[1:]:
        whole = [examples[i] for i in owners]
        for name, recipe in experiment.recipes.items():
            refuse_endless(lengths, recipe.model, f"{name}: source: {split}", whole, task)
        fields = (*task.fields(), *task.held_out_fields())
        manifest.write_lines(path / f"{split}.jsonl", [{f: example[f] for f in fields} for example in examples])
    return digest


def _unlabelled(task: Task, example: Example, tokenizer: Tokenizer) -> Encoded:
    """An example with nothing to learn yet: the teacher will write it."""
    prompt = task.encode_prompt(task.prompt(example), tokenizer)
    return Encoded(prompt, np.zeros(0, np.int32), np.zeros(len(prompt), bool))


def refuse_endless(lengths: np.ndarray, model: Architecture, where: str, examples: list[Example], task: Task) -> None:
    """Raises KdError, before any training, for a held-out example that a model could not take whole."""
    sizes_N = model.layout.sizes(lengths).max(-1)
    worst, most = int(sizes_N.argmax()), min(model.context or LONGEST, LONGEST)
    if sizes_N[worst] > most:
        raise KdError(
            f"{where} example {task.prompt(examples[worst])[:40]!r}... has {sizes_N[worst]} tokens; held-out examples "
            f"are taken whole, wanted at most {most}; split or remove it"
        )
