"""What the teacher says about every token of a split, on disk."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store
from kd_jax.batches.layouts import Bucket, Segment
from kd_jax.batches.targets import PseudoTargets
from kd_jax.experiment import targets_name
from kd_jax.models.base import Model
from kd_jax.objective.fused_head import map_head
from kd_jax.runtime import progress
from kd_jax.signals.base import Signal
from kd_jax.teaching import base
from kd_jax.teaching.base import Record, Teacher
from kd_jax.types import Batch, Params, Payload


def write_signal(
    teacher: Teacher, folder: Folder, signal: Signal, targets: PseudoTargets | None, split_name: str, force: bool
) -> None:
    """Writes one signal's cache of one split, or goes on with it, or finds it done, or mends it.

    A finished cache of more than is wanted (a larger k, further temperatures) is taken as it is. Shards
    whose bytes have changed are named and made anew.
    """
    if not force and folder.finished():
        stored = _stored_signal(folder.inputs(), signal)
        signal = signal if stored is None else stored.covering(signal)  # only what is lacking will differ
    schema = dict(signal.schema(teacher.vocab_size)) | pipeline.DIGEST
    inputs = config.flatten(signal, "signal") | teacher.consumed(targets, split_name)
    inputs |= {f"stored.{name}": field.dtype for name, field in schema.items()}
    if not base.begin_store(folder, "records", inputs, force):
        return
    began = time.perf_counter()
    split = pipeline.Split(teacher.workdir.split(targets_name(targets)), split_name)
    with progress.bar(f"cache {folder.path.name}", len(split)) as bar:
        make = signal_records(teacher, split, signal, bar, teacher.experiment.shapes)
        digest = base.write_store(teacher, folder, "records", schema, len(split), make)
    if digest is None:
        progress.log(f"{folder.path}: this writer's shards are done; the last writer to finish completes the cache")
        return
    outputs = store_outputs(folder, digest, split)
    folder.finish(outputs, time.perf_counter() - began)
    tokens, each = outputs["target_tokens"], outputs["bytes_per_target_token"]
    progress.log(f"cache: {tokens} target tokens, {each:.1f} bytes each; {folder.path}")


def store_outputs(folder: Folder, digest: str, split: pipeline.Split) -> dict[str, Any]:
    """What a manifest says of a signal's store that is whole."""
    written = store.Store(folder.path, "records")
    tokens = sum(int(split.examples[i]["counts"].sum()) for i in range(len(split)))
    outputs = {"digest": digest, "records": len(written), "target_tokens": tokens, "bytes": written.bytes()}
    return outputs | {"bytes_per_target_token": outputs["bytes"] / tokens}


def signal_records(
    teacher: Teacher, split: pipeline.Split, signal: Signal, bar: Any, shapes: Sequence[Bucket]
) -> Callable[[int, int], Iterator[Record]]:
    """(start, stop) -> the signal's records of those examples, one entry per target that counts."""
    parts = {"model": teacher.model, "signal": signal, "seed": teacher.experiment.seed}
    step = teacher.devices.compile(functools.partial(signal_step, **parts))

    def batches_of(indices: range) -> pipeline.EvalBatches:
        return pipeline.EvalBatches(split, teacher.layout, shapes, base.BATCH, teacher.devices.count, indices)

    def say(batch: Batch) -> Record:
        said = teacher.devices.to_host(step(teacher.params, teacher.devices.shard(batch)))
        return said | {"mask": batch.mask_BT}

    def record(example: Segment, b: int, said: Record) -> Record:
        return {name: values[b][said["mask"][b]] for name, values in said.items() if name != "mask"}

    return base.records(split, batches_of, say, record, bar)


def _stored_signal(inputs: Mapping[str, Any], wanted: Signal) -> Signal | None:
    """The signal that a cache was made for; None if it is of another class."""
    if inputs["signal"] != config.qualified_name(type(wanted), "signal"):
        return None
    fields = {field.name: inputs[f"signal.{field.name}"] for field in dataclasses.fields(wanted)}
    return type(wanted)(**{name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()})


def signal_step(params: Params, batch: Batch, *, model: Model, signal: Signal, seed: int) -> Payload:
    """What the teacher says about each target of the batch, [B, T, ...] per field.

    What a signal draws depends on (seed, example, target's position in its example) alone, so a shard made anew is
    the same, and any layout draws the same.
    """
    hidden_BTD = model.apply(params, batch.inputs)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys_B = fold(jax.random.fold_in(jax.random.key(seed), 4), batch.inputs.index_B)
    keys_BT = jax.vmap(fold, (0, None))(keys_B, np.arange(hidden_BTD.shape[1]))
    hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    draw = lambda logits_NV, keys_N: signal.reduce(logits_NV, jax.random.wrap_key_data(keys_N))  # noqa: E731
    payload = map_head(draw, hidden_ND, model.head(params), jax.random.key_data(keys_BT.reshape(-1)))
    return {name: x.reshape(*hidden_BTD.shape[:2], *x.shape[1:]) for name, x in payload.items()}
