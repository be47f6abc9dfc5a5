"""The teacher's records of a split: inferred batch by batch, written shard by shard."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline, store
from kd_jax.batches.layouts import Segment
from kd_jax.runtime import hosts, progress
from kd_jax.teaching.teacher import Teacher

RECORDS_PER_SHARD = 4096
Record = dict[str, np.ndarray]
MakeRecords = Callable[[int, int], Iterable[Record]]  # (start, stop) -> records start to stop - 1
BatchT = TypeVar("BatchT", covariant=True)


class PlannedBatches(Protocol[BatchT]):
    """Batches of examples (`EvalBatches`, `PromptBatches`)."""

    @property
    def plan(self) -> list[tuple[Any, np.ndarray]]:
        """The padded length and the examples' numbers of each batch."""
        ...

    def __iter__(self) -> Iterator[BatchT]:
        """Return an iterator of the batches."""
        ...


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
    """Write this writer's shards of a store; the main process writes the index.

    Returns:
      The store's digest; None while shards of other writers are missing.
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
    batches: PlannedBatches[BatchT],
    infer: Callable[[BatchT], Record],
    to_record: Callable[[Segment, int, Record], Record],
    bar: progress.Bar,
) -> Iterator[Record]:
    """Yield one record for each of these examples, in their order.

    Args:
      examples: the split.
      indices: numbers of some of them.
      batches: these examples in any order.
      infer: batch -> the teacher's outputs for its rows, host arrays [B, ...].
      to_record: (example, its row in the batch, those outputs) -> the example's record.
      bar: advanced by the number of examples.
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
