"""Fetch the text, train the tokeniser on the training split, and encode every split."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax import config
from kd_jax.artifacts import manifest, runlog
from kd_jax.data import store
from kd_jax.data.pipeline import lengths_of
from kd_jax.data.sources import SPLITS, without_leaks
from kd_jax.data.tokenizers import EOS, Tokenizer
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment


def run(experiment: Experiment, workdir: Path, force: bool = False) -> None:
    """Leaves workdir/data: tokenizer.model, the encoded splits, and the held-out text.

    Raises:
      KdError: if the source cannot be read, or a split is empty.
    """
    folder, task = workdir / "data", experiment.task
    inputs = {}
    for name, part in (("source", experiment.source), ("task", task), ("tokenizer", experiment.tokenizer)):
        inputs |= config.flatten(part, name)
    inputs |= {f"consumed.{path}": manifest.file_digest(path) for path in experiment.source.files()}
    if not manifest.start(folder, "prepare", inputs, force):
        runlog.say(f"data: already prepared, {folder}")
        return
    manifest.start(folder, "prepare", inputs, force=True)  # what a kill left half-way is quickly made again
    began = time.perf_counter()
    runlog.say(f"data: reading {experiment.source.name}")
    splits, leaked = without_leaks(experiment.source.splits(task.fields()), task.fields()[0])
    for split, examples in splits.items():
        if not examples:
            raise KdError(f"source: no examples in the split {split!r} of {experiment.source.name}; give it some")
    texts = (example[field] for example in splits["train"] for field in task.fields())
    experiment.tokenizer.train(texts, folder / "tokenizer.model")
    tokenizer = Tokenizer(folder / "tokenizer.model")
    digests = {split: encode(experiment, splits[split], tokenizer, folder, split) for split in SPLITS}
    counts = {split: len(examples) for split, examples in splits.items()}
    outputs = {
        "dataset": experiment.source.name,
        "counts": counts,
        "dropped_as_seen_in_training": leaked,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.digest(),
        "splits": digests,
    }
    manifest.finish(folder, "prepare", outputs, time.perf_counter() - began)
    runlog.say(f"data: {', '.join(f'{n} {split}' for split, n in counts.items())} examples; {folder}")


def encode(
    experiment: Experiment, examples: list[dict[str, str]], tokenizer: Tokenizer, folder: Path, split: str
) -> str:
    """Writes one encoded split, its lengths and, but for training, its text; returns the split's digest."""
    task = experiment.task

    with runlog.progress(f"encode {split}", len(examples)) as bar:

        def records(start: int, stop: int) -> Iterator[dict[str, Any]]:
            for example in examples[start:stop]:
                bar.advance(1)
                yield task.encode(example, tokenizer, EOS)

        digest = store.write(folder, split, task.schema(), len(examples), records)
    encoded = store.Store(folder, split)
    np.save(folder / f"{split}.lengths.npy", lengths_of([encoded[i] for i in range(len(encoded))]))
    if split != "train":
        rows = [{"id": i} | {field: example[field] for field in task.fields()} for i, example in enumerate(examples)]
        manifest.write_lines(folder / f"{split}.jsonl", rows)
    return digest
