"""The trained teacher on the devices, and records of what it says, made shard by shard."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from kd_jax.artifacts import checkpoint
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches import pipeline, store
from kd_jax.batches.layouts import Layout, Segment
from kd_jax.batches.targets import PseudoTargets
from kd_jax.experiment import Experiment, targets_name
from kd_jax.runtime import hosts, progress
from kd_jax.runtime.backends import own_devices
from kd_jax.tokenizers import base as tokenizers
from kd_jax.types import Params

BATCH = 64
RECORDS_PER_SHARD = 4096
Record = dict[str, np.ndarray]


class Teacher:
    """The trained teacher, loaded when its parameters are first asked for."""

    def __init__(self, experiment: Experiment, workdir: Workdir, writer: tuple[int, int] | None = None):
        """Args: the run; writer: as store.write's, None for this host's. Raises KdError if the data is not prepared."""
        self.experiment, self.workdir, self.writer = experiment, workdir, writer or hosts.process()
        self.data = workdir.data.outputs()
        self.devices = own_devices(experiment.backend, experiment.mesh)
        self.model = experiment.teacher.model.build(self.data["vocab_size"])

    @property
    def layout(self) -> Layout:
        return self.experiment.teacher.model.layout(self.tokenizer.start, self.tokenizer.forced_prefix)

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.load(self.experiment.tokenizer, self.workdir.data)

    @functools.cached_property
    def params(self) -> Params:
        params = checkpoint.load_params(self.workdir.model(TEACHER), self.model.init)
        return self.devices.replicate(params, self.model.axes(params))

    def load(self) -> None:
        """Its parameters are on the devices now."""
        _ = self.params

    def consumed(self, targets: PseudoTargets | None, split: str) -> dict[str, Any]:
        """What a manifest keeps of where something that the teacher says came from."""
        inputs = {"teacher": self.workdir.model(TEACHER).outputs()["digest"], "tokenizer": self.data["tokenizer"]}
        # Of the split's examples, so of their truncation too.
        whose = self.workdir.split(targets_name(targets)).outputs()
        inputs["split"] = whose["digest"] if targets else whose["splits"][split]
        shapes = {"split": split, "buckets": [list(bucket) for bucket in self.experiment.shapes]}
        return {f"consumed.{name}": value for name, value in inputs.items()} | shapes


def begin_store(folder: Folder, name: str, inputs: Mapping[str, Any], force: bool) -> bool:
    """Whether there is work to do; a finished store is looked through, and damaged shards are deleted."""
    if folder.begin(inputs, force):
        return True
    damaged = hosts.run_on_main(lambda: [str(path) for path in store.remove_damaged(folder.path, name)])
    if not damaged:
        progress.log(f"cache: already written, {folder.path}")
        return False
    progress.log(f"cache: damaged, made anew: {', '.join(damaged)}")
    return True


def write_store(
    teacher: Teacher, folder: Folder, name: str, schema: store.Schema, count: int, make: Callable
) -> str | None:
    """As store.write: every host makes its shards, and the first, once all are there, the index."""
    teacher.load()  # on every host, with shards to write or without: orbax waits for all
    write = functools.partial(store.write, folder.path, name, schema, count, make, RECORDS_PER_SHARD)
    digest = write(teacher.writer)
    return digest if hosts.process().count == 1 else _completed(write)


def _completed(write: Callable) -> str:
    """The digest, from the first host, which finds the shards of all."""
    hosts.exchange("done")
    return hosts.run_on_main(write)


def records(
    split: pipeline.Split,
    batches_of: Callable[[range], Any],
    say: Callable[[Any], Record],
    record: Callable[[Segment, int, Record], Record],
    bar: Any,
) -> Callable[[int, int], Iterator[Record]]:
    """(start, stop) -> the records of those examples, for store.write.

    Args:
      split: what the teacher speaks of.
      batches_of: example numbers -> their batches, with a `plan` of (padded length, example numbers).
      say: batch -> what the teacher says of its rows, host arrays [B, ...].
      record: (example, its row in the batch, those arrays) -> the example's record.
      bar: advanced by the examples done.
    """

    def make(start: int, stop: int) -> Iterator[Record]:
        by_index = {}  # in the order that the length buckets come in
        batches = batches_of(range(start, stop))
        for (length, indices), batch in zip(batches.plan, batches, strict=True):
            with bar.meeting(length):
                said = say(batch)
            for b, i in enumerate(indices):
                example = split.read(i)
                digest = {"digest": pipeline.example_digest(example.encoded)}
                by_index[example.index] = record(example, b, said) | digest
            bar.advance(len(indices))
        yield from (by_index[i] for i in range(start, stop))

    return make
