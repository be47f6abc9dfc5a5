"""The teacher's records of a split: inferred batch by batch, written shard by shard."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store
from kd_jax.batches.layouts import Segment
from kd_jax.runtime import hosts, progress
from kd_jax.teaching.teacher import Teacher

RECORDS_PER_SHARD = 4096
Record = dict[str, np.ndarray]
MakeRecords = Callable[[int, int], Iterable[Record]]  # (start, stop) -> records start to stop - 1
BatchT = TypeVar("BatchT")


def begin_store(folder: Folder, name: str, inputs: Mapping[str, Any], force: bool) -> bool:
    """Begin a store's folder and delete damaged shards; return whether records are missing."""
    if folder.begin(inputs, force):
        return True
    damaged = hosts.run_on_main(lambda: [str(path) for path in store.remove_damaged(folder.path, name)])
    if not damaged:
        progress.log(f"cache: already written, {folder.path}")
        return False
    progress.log(f"cache: writing damaged shards again: {', '.join(damaged)}")
    return True


def write_records(
    teacher: Teacher, folder: Folder, name: str, schema: store.Schema, count: int, make: MakeRecords
) -> str | None:
    """Compute records with the teacher and write this process's shards of a store; resume if some exist.

    Args:
      teacher: loaded onto the devices first, on every process.
      folder: where the store is.
      name: of the store's files, such as "records".
      schema: field name -> shape and dtype of a record's arrays.
      count: number of records in all processes' shards together.
      make: range of example numbers -> their records, in order.

    Returns:
      Digest of the whole store; None if another writer has not finished its shards. The last one writes the index.
    """
    teacher.load()  # on every host, with or without shards to write: orbax waits for all of them
    write = functools.partial(store.write, folder.path, name, schema, count, make, RECORDS_PER_SHARD)
    digest = write(teacher.writer)
    if hosts.process().count == 1:
        return digest
    hosts.exchange("done")  # now the shards of all hosts exist
    return hosts.run_on_main(write)


def infer_records(
    examples: pipeline.Examples,
    indices: Iterable[int],
    batches: pipeline.PlannedBatches[BatchT],
    infer: Callable[[BatchT], Record],
    to_record: Callable[[Segment, int, Record], Record],
    bar: progress.Bar,
) -> Iterator[Record]:
    """Yield one record for each of these examples, in their order; the batches may have another.

    `infer` returns the teacher's outputs for a batch's rows, as host arrays [B, ...]. `to_record` makes a
    record from an example, its row and those outputs.
    """
    by_index: dict[int, Record] = {}
    for (length, members), batch in zip(batches.plan, batches, strict=True):
        with bar.compiling_once(length):
            outputs = infer(batch)
        for b, i in enumerate(members):
            example = examples.read(i)
            digest = {"digest": pipeline.example_digest(example.encoded)}
            by_index[example.index] = to_record(example, b, outputs) | digest
        bar.advance(len(members))
    yield from (by_index[i] for i in indices)
