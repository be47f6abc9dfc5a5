"""A split's texts as records of token ids, shard by shard of its examples, each by whichever process.

Which examples a shard holds follows from their number alone, so the bytes do not depend on the number of processes,
and a shard that is whole need not be made again. Beside each shard stands, until all are whole, SPLIT-00000.parts.npy:
int32 [records, 3], tokens of the prompt and of the completion, and the example that the record is a part of.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.artifacts import files, manifest
from kd_jax.batches import store
from kd_jax.batches.workers import IN_PROCESS, Workers
from kd_jax.runtime import progress
from kd_jax.sources.splits import UNLABELLED, Splits
from kd_jax.tasks.base import ENCODED, Encoded, Example, Task
from kd_jax.tokenizers.base import TokenizerSettings, Tokenizer

SHARD, SHARDS = 4096, 512  # examples of a shard at least; shards of a split at most, which a reader holds open


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What every process needs to encode a shard.

    Attributes:
      folder: of the prepared data, with the tokeniser.
      settings: the tokeniser's.
      task: says how an example is encoded.
      splits: split -> examples.
    """

    folder: Path
    settings: TokenizerSettings
    task: Task
    splits: Splits

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return self.settings.load(self.folder)

    def records(self, split: str, examples: range) -> Iterator[tuple[Encoded, int]]:
        """(record, its example) of these examples; several where a long text is cut."""
        rows = self.splits[split][examples.start : examples.stop]
        for number, example in zip(examples, rows, strict=True):
            whole = split != UNLABELLED
            parts = self.task.encode(example, self.tokenizer) if whole else [self._unlabelled(example)]
            yield from ((part, number) for part in parts)

    def _unlabelled(self, example: Example) -> Encoded:
        """An example with nothing to learn yet: the teacher will write it."""
        prompt = self.task.encode_prompt(self.task.prompt(example), self.tokenizer)
        return Encoded(prompt, np.zeros(0, np.int32), np.zeros(len(prompt), bool))


def per_shard(examples: int) -> int:
    """Examples of a shard: SHARD, or a multiple of it where the shards would be too many.

    Examples:
      >>> per_shard(100), per_shard(10_000_000)
      (4096, 20480)
    """
    return SHARD * max(1, -(-examples // (SHARD * SHARDS)))


def encode(encoding: Encoding, split: str, workers: Workers = IN_PROCESS) -> str:
    """Writes an encoded split, SPLIT.lengths.npy and SPLIT.owners.npy, or goes on where an earlier call was stopped.

    Returns:
      The split's digest.
    """
    folder, count = encoding.folder, len(encoding.splits[split])
    each = per_shard(count)
    shards = [range(start, min(start + each, count)) for start in range(0, count, each)]
    if not (folder / f"{split}.index.json").exists():  # written when all is whole, but for the parts that go
        missing = [n for n in range(len(shards)) if not parts_path(folder, split, n).exists()]
        with progress.bar(f"encode {split}", count) as bar, workers.sharing(encoding) as each_shard:
            bar.skip(count - sum(len(shards[n]) for n in missing))
            for done in each_shard(encode_shard, [(split, n, shards[n]) for n in missing]):
                bar.advance(done)
        parts = [files.read_array(parts_path(folder, split, n)) for n in range(len(shards))]
        parts_N3 = np.concatenate(parts)
        manifest.write_array(folder / f"{split}.lengths.npy", parts_N3[:, :2])
        manifest.write_array(folder / f"{split}.owners.npy", parts_N3[:, 2])
        store.write_index(folder, split, ENCODED, [len(part) for part in parts], each)
    for n in range(len(shards)):
        parts_path(folder, split, n).unlink(missing_ok=True)
    return store.read_index(folder / f"{split}.index.json")["digest"]


def encode_shard(encoding: Encoding, shard: tuple[str, int, range]) -> int:
    """Writes one shard, given as (split, number, examples), and says how many examples it holds."""
    split, number, examples = shard
    parts: list[tuple[int, int, int]] = []

    def records() -> Iterator[dict[str, Any]]:
        for encoded, owner in encoding.records(split, examples):
            parts.append((len(encoded.prompt), len(encoded.completion), owner))
            yield encoded._asdict()

    store.write_shard(encoding.folder, split, number, ENCODED, records())
    # Last: where it stands, the shard is whole.
    manifest.write_array(parts_path(encoding.folder, split, number), np.asarray(parts, np.int32).reshape(-1, 3))
    return len(examples)


def parts_path(folder: Path, split: str, shard: int) -> Path:
    return folder / f"{split}-{shard:05d}.parts.npy"
