"""Encode a split's texts as records of token ids, shard by shard of its examples, by one process or several.

The number of examples alone decides which examples a shard holds. So the bytes do not depend on the number of
processes, and a complete shard need not be written again. Until all shards are complete, a file SPLIT-00000.parts.npy
stands beside each: int32 [records, 3], tokens of the prompt, tokens of the completion, and the number of the example
that the record is a part of.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.artifacts import files, manifest
from kd_jax.batches import store
from kd_jax.batches.workers import IN_PROCESS, Workers
from kd_jax.runtime import progress
from kd_jax.sources.base import UNLABELLED, Splits
from kd_jax.tasks.base import ENCODED, Encoded, Task
from kd_jax.tokenizers.base import Tokenizer, TokenizerSettings

MIN_SHARD_EXAMPLES = 4096
MAX_SHARDS = 512  # of a split; a reader keeps all of them open


class Shard(NamedTuple):
    """One shard of a split, and the numbers of the split's examples in it."""

    split: str
    number: int
    examples: range


@dataclasses.dataclass(frozen=True)
class EncodeJob:
    """All that a process needs to encode a shard; `folder` holds the prepared data with the tokeniser."""

    folder: Path
    settings: TokenizerSettings
    task: Task
    splits: Splits

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokeniser, loaded on first use."""
        return self.settings.load(self.folder)

    def records(self, shard: Shard) -> Iterator[tuple[Encoded, int]]:
        """Yield (record, number of its example); a long text may have several records."""
        rows = self.splits[shard.split][shard.examples.start : shard.examples.stop]
        for number, example in zip(shard.examples, rows, strict=True):
            if shard.split == UNLABELLED:  # the teacher writes the completion later
                prompt = self.task.encode_prompt(self.task.prompt(example), self.tokenizer)
                yield Encoded(prompt, np.zeros(0, np.int32), np.zeros(len(prompt), bool)), number
            else:
                yield from ((part, number) for part in self.task.encode(example, self.tokenizer))


def examples_per_shard(examples: int) -> int:
    """Return MIN_SHARD_EXAMPLES, or the multiple of it that gives at most MAX_SHARDS shards.

    Examples:
      >>> examples_per_shard(100), examples_per_shard(10_000_000)
      (4096, 20480)
    """
    return MIN_SHARD_EXAMPLES * max(1, -(-examples // (MIN_SHARD_EXAMPLES * MAX_SHARDS)))


def encode_split(job: EncodeJob, split: str, workers: Workers = IN_PROCESS) -> str:
    """Write an encoded split, SPLIT.lengths.npy and SPLIT.owners.npy, or resume; return the split's digest."""
    folder, count = job.folder, len(job.splits[split])
    size = examples_per_shard(count)
    starts = range(0, count, size)
    shards = [Shard(split, number, range(start, min(start + size, count))) for number, start in enumerate(starts)]
    if not (folder / f"{split}.index.json").exists():  # written when all shards are complete
        missing = [shard for shard in shards if not parts_path(folder, split, shard.number).exists()]
        with progress.bar(f"encode {split}", count) as bar, workers.start(job) as parallel_map:
            bar.skip(count - sum(len(shard.examples) for shard in missing))
            for num_examples in parallel_map(encode_shard, missing):
                bar.advance(num_examples)
        parts = [files.read_array(parts_path(folder, split, number)) for number in range(len(shards))]
        parts_N3 = np.concatenate(parts)
        manifest.write_array(folder / f"{split}.lengths.npy", parts_N3[:, :2])
        manifest.write_array(folder / f"{split}.owners.npy", parts_N3[:, 2])
        store.write_index(folder, split, ENCODED, [len(part) for part in parts], size)
    for shard in shards:
        parts_path(folder, split, shard.number).unlink(missing_ok=True)
    return store.read_index(folder / f"{split}.index.json").digest


def encode_shard(job: EncodeJob, shard: Shard) -> int:
    """Write one shard; return its number of examples."""
    parts: list[tuple[int, int, int]] = []

    def records() -> Iterator[store.Record]:
        for encoded, number in job.records(shard):
            parts.append((len(encoded.prompt), len(encoded.completion), number))
            yield encoded._asdict()

    store.write_shard(job.folder, shard.split, shard.number, ENCODED, records())
    # Written last: where this file exists, the shard is complete.
    path = parts_path(job.folder, shard.split, shard.number)
    manifest.write_array(path, np.asarray(parts, np.int32).reshape(-1, 3))
    return len(shard.examples)


def parts_path(folder: Path, split: str, shard: int) -> Path:
    """Return the path of the file that marks a shard as complete."""
    return folder / f"{split}-{shard:05d}.parts.npy"
