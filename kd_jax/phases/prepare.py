"""Fetch the text, train the tokeniser on the training split, and encode every split."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from kd_jax import config
from kd_jax.artifacts import manifest, runlog
from kd_jax.artifacts.workdir import Workdir
from kd_jax.data import pipeline, store
from kd_jax.data.held_out import SPLITS, leak_sentence, without_leaks
from kd_jax.data.tokenizers import Tokenizer
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment
from kd_jax.tasks.base import ENCODED, Example


def run(experiment: Experiment, workdir: Workdir, force: bool = False) -> None:
    """Leaves workdir/data: tokenizer.model, the encoded splits, and the held-out text.

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
    splits, leaked = without_leaks(experiment.source.splits(task.fields()), task.fields()[0])
    for split, examples in splits.items():
        if not examples:
            raise KdError(f"source: no examples in the split {split!r} of {experiment.source.name}; give it some")
    texts = (example[field] for example in splits["train"] for field in task.fields())
    experiment.tokenizer.train(texts, folder.path / "tokenizer.model")
    tokenizer = Tokenizer(folder.path / "tokenizer.model")
    digests = {split: encode(experiment, workdir, splits[split], tokenizer, split) for split in SPLITS}
    counts = {split: len(examples) for split, examples in splits.items()}
    outputs = {
        "dataset": experiment.source.name,
        "counts": counts,
        "dropped_as_seen_in_training": leaked,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.digest(),
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
    return flat | {f"consumed.{path}": manifest.file_digest(path) for path in experiment.source.files()}


def encode(experiment: Experiment, workdir: Workdir, examples: list[Example], tokenizer: Tokenizer, split: str) -> str:
    """Writes one encoded split, its lengths and, but for training, its text; returns the split's digest."""
    task, path = experiment.task, workdir.data.path

    with runlog.progress(f"encode {split}", len(examples)) as bar:

        def records(start: int, stop: int) -> Iterator[dict[str, Any]]:
            for example in examples[start:stop]:
                bar.advance(1)
                yield task.encode(example, tokenizer)._asdict()

        digest = store.write(path, split, ENCODED, len(examples), records)
    encoded = store.Store(path, split)
    lengths = pipeline.lengths_of([encoded[i] for i in range(len(encoded))])
    np.save(path / f"{split}.lengths.npy", lengths)
    if split != "train":
        refuse_endless(lengths, examples, task, split)
        rows = [{field: example[field] for field in task.fields()} for example in examples]
        manifest.write_lines(path / f"{split}.jsonl", rows)
    return digest


def refuse_endless(lengths: np.ndarray, examples: list[Example], task: Any, split: str) -> None:
    """Raises KdError, before any training, for a held-out example that no machine here could take whole."""
    worst = int(lengths.max(-1).argmax())
    if lengths[worst].max() > pipeline.LONGEST:
        raise KdError(
            f"source: {split} example {worst} ({task.prompt(examples[worst])[:40]!r}...) has {lengths[worst].max()} "
            f"tokens; held-out examples are taken whole, wanted at most {pipeline.LONGEST}; split or remove it"
        )
