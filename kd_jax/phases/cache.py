"""Let the teacher say what it thinks of every training token, once, and keep it on disk."""

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax import checkpoint, config, manifest, runlog
from kd_jax.data import pipeline, store
from kd_jax.experiment import Experiment
from kd_jax.fused_head import map_head
from kd_jax.objective import cached_signals
from kd_jax.parallel import Parallel, parallel
from kd_jax.types import Batch, Model, Params, Payload, Signal

BATCH = 64
RECORDS_PER_SHARD = 4096


def run(experiment: Experiment, workdir: Path, force: bool = False) -> None:
    """Writes workdir/cache/SIGNAL for every signal that some student's term reads.

    Record i belongs to training example i and carries its digest. Students that want less of the same
    signal (a smaller k) share one cache.

    Raises:
      KdError: if the teacher is not trained, or a signal does not fit the vocabulary.
    """
    terms = {f"{name}.{key}": term for name, one in experiment.students.items() for key, term in one.terms.items()}
    for name, signal in cached_signals(terms).items():
        write(experiment, workdir, workdir / "cache" / name, signal, force)


def write(experiment: Experiment, workdir: Path, folder: Path, signal: Signal, force: bool) -> None:
    """Writes one signal's cache, or goes on with it, or finds it done."""
    data = manifest.read(workdir / "data", "prepare")["outputs"]
    teacher = manifest.read(workdir / "teacher", "teacher")["outputs"]
    consumed = {"teacher": teacher["digest"], "train": data["splits"]["train"], "tokenizer": data["tokenizer"]}
    inputs = config.flatten(signal, "signal") | {f"consumed.{key}": value for key, value in consumed.items()}
    inputs |= {"split": "train", "buckets": list(experiment.buckets)}
    schema = dict(signal.schema(data["vocab_size"])) | pipeline.DIGEST
    if not manifest.start(folder, "cache", inputs, force):
        runlog.say(f"cache: already written, {folder}")
        return
    began = time.perf_counter()
    model, spread = experiment.teacher.model.build(data["vocab_size"]), parallel(experiment.backend)
    params = spread.replicate(checkpoint.load_params(workdir / "teacher", "teacher", model))
    split = pipeline.Split(workdir / "data", "train")
    step = spread.spread(functools.partial(teacher_step, model=model, signal=signal))

    with runlog.progress("cache", len(split)) as bar:

        def records(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
            batches = pipeline.EvalBatches(split, experiment.buckets, BATCH, spread.devices, range(start, stop))
            yield from shard_records(batches, split, step, params, spread, range(start, stop), bar)

        digest = store.write(folder, "records", schema, len(split), records, RECORDS_PER_SHARD)
    written = store.Store(folder, "records")
    tokens = sum(len(written[i]["rest"]) for i in range(len(written)))
    outputs = {"digest": digest, "records": len(written), "target_tokens": tokens, "bytes": written.bytes()}
    outputs["bytes_per_target_token"] = outputs["bytes"] / tokens
    manifest.finish(folder, "cache", outputs, time.perf_counter() - began)
    runlog.say(f"cache: {tokens} target tokens, {outputs['bytes_per_target_token']:.1f} bytes each; {folder}")


def teacher_step(params: Params, batch: Batch, *, model: Model, signal: Signal, all_sum: Any = None) -> Payload:
    """What the teacher says about each target of the batch, [B, T, ...] per field."""
    del all_sum  # nothing is added up here
    hidden_BTD = model.apply(params, batch)
    payload = map_head(signal.reduce, hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), model.head(params))
    return {name: x.reshape(*hidden_BTD.shape[:2], *x.shape[1:]) for name, x in payload.items()}


def shard_records(
    batches: pipeline.EvalBatches,
    split: pipeline.Split,
    step: Any,
    params: Params,
    spread: Parallel,
    indices: range,
    bar: Any,
) -> Iterator[dict[str, np.ndarray]]:
    """The records of `indices`, in their order, whatever order the length buckets came in."""
    records: dict[int, dict[str, np.ndarray]] = {}
    for batch in batches:
        payload = spread.gather(step(params, spread.shard(batch)))
        for row, i in enumerate(batch.index_B):
            if i >= 0:
                example, _ = split.read(i)
                target = len(example["target"])
                record = {name: values[row, :target] for name, values in payload.items()}
                records[int(i)] = record | {"digest": pipeline.example_digest(example)}
        bar.advance(int((batch.index_B >= 0).sum()))
    yield from (records[i] for i in indices)
