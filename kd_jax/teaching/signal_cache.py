"""The teacher's signals for every token of a split, on disk."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store
from kd_jax.batches.layouts import Segment
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE
from kd_jax.batches.targets import TrainTargets
from kd_jax.models.base import Model
from kd_jax.objective.fused_head import map_head
from kd_jax.runtime import progress
from kd_jax.signals.base import LogitSignal
from kd_jax.teaching.records import Record, begin_store, infer_records, write_records
from kd_jax.teaching.teacher import Teacher
from kd_jax.types import Array, Batch, Params, Payload
from kd_jax.user_code import code_digests


def write_signal(
    teacher: Teacher,
    folder: Folder,
    signal: LogitSignal,
    targets: TrainTargets,
    split_name: str,
    force: bool,
    fields: Mapping[str, Any] | None = None,
    data: Folder | None = None,
) -> None:
    """Write the cache of one signal of one split; resume or repair one that exists.

    A finished cache that covers the signal (a larger k, further temperatures) is used as it is. Damaged shards are
    named and written again. `targets` are those of the split; `fields` are
    those of the experiment that the signal comes from, where it is no term's. `data` is the split's folder where it is
    neither the data's nor one of pseudo-targets.
    """
    if not force and folder.finished():
        cached = _cached_signal(folder.inputs(), signal)
        signal = signal if cached is None else cached.merge(signal)  # differs only in what the cache lacks
    schema = {**(signal.schema(teacher.vocab_size) or {}), **pipeline.DIGEST}
    inputs = config.flatten(signal, "signal") | teacher.manifest_inputs(targets, split_name, data)
    inputs |= {f"stored.{name}": field.dtype for name, field in schema.items()} | code_digests(signal)
    inputs |= {"seed": teacher.experiment.seed} | dict(fields or {})
    if not begin_store(folder, "records", inputs, force):
        return
    start_time = time.perf_counter()
    split = pipeline.Split(data or teacher.workdir.split(targets.name), split_name)
    step = functools.partial(signal_step, model=teacher.model, signal=signal, seed=teacher.experiment.seed)
    compiled = teacher.devices.compile(step)

    def infer(batch: Batch) -> Record:
        payload = teacher.devices.to_host(compiled(teacher.params, teacher.devices.shard(batch)))
        return payload | {"mask": batch.mask_BT}

    def to_record(example: Segment, b: int, outputs: Record) -> Record:
        return {name: values[b][outputs["mask"][b]] for name, values in outputs.items() if name != "mask"}

    with progress.bar(f"cache {folder.path.name}", len(split)) as bar:

        def make(start: int, stop: int) -> Iterator[Record]:
            indices, shapes = range(start, stop), teacher.experiment.shapes
            batches = pipeline.EvalBatches(
                split, teacher.layout, shapes, INFERENCE_BATCH_SIZE, teacher.devices.count, indices
            )
            return infer_records(split, indices, batches, infer, to_record, bar)

        digest = write_records(teacher, folder, "records", schema, len(split), make)
    if digest is None:
        progress.log(f"{folder.path}: this writer's shards are done; the last writer to finish completes the cache")
        return
    outputs = store_outputs(folder, digest, split)
    folder.finish(outputs, time.perf_counter() - start_time)
    tokens, bytes_per_token = outputs["target_tokens"], outputs["bytes_per_target_token"]
    progress.log(f"cache: {tokens} target tokens, {bytes_per_token:.1f} bytes each; {folder.path}")


def store_outputs(folder: Folder, digest: str, split: pipeline.Split) -> dict[str, Any]:
    """Return what the manifest of a complete signal cache records."""
    cache = store.Store(folder.path, "records")
    tokens, num_bytes = split.count_targets(), cache.num_bytes()
    return {
        "digest": digest,
        "records": len(cache),
        "target_tokens": tokens,
        "bytes": num_bytes,
        "bytes_per_target_token": num_bytes / tokens,
    }


def _cached_signal(inputs: Mapping[str, Any], signal: LogitSignal) -> LogitSignal | None:
    """Return the signal that a cache was made for; None if it is of another class."""
    if inputs["signal"] != config.qualified_name(type(signal), "signal"):
        return None
    fields = {field.name: inputs[f"signal.{field.name}"] for field in dataclasses.fields(cast(Any, signal))}
    return type(signal)(**{name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()})


def signal_step(params: Params, batch: Batch, *, model: Model, signal: LogitSignal, seed: int) -> Payload:
    """Return the signal's fields for each target of the batch, [B, T, ...].

    Random draws depend only on (seed, example, position in the example). So a shard that is written again is the same,
    and every layout draws the same.
    """
    hidden_BTD = model.apply(params, batch.inputs)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys_B = fold(jax.random.fold_in(jax.random.key(seed), 4), batch.inputs.index_B)
    keys_BT = jax.vmap(fold, (0, None))(keys_B, np.arange(hidden_BTD.shape[1]))
    hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])

    def reduce(logits_NV: Array, keys_N: Array) -> Payload:
        return signal.reduce(logits_NV, jax.random.wrap_key_data(keys_N))

    payload = map_head(reduce, hidden_ND, model.head(params), jax.random.key_data(keys_BT.reshape(-1)))
    return {name: x.reshape(*hidden_BTD.shape[:2], *x.shape[1:]) for name, x in payload.items()}
