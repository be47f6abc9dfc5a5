"""From stored examples to padded batches.

Batch i of training is a pure function of (seed, i): so a run goes on at step n knowing only n, and any
number of hosts reads slices of the same batches. Record i of a signal's cache belongs to example i of
the split; the two are zipped before anything is shuffled, and each record is checked against its example.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from kd_jax.data.store import Store
from kd_jax.data.tokenizers import START
from kd_jax.errors import KdError
from kd_jax.types import Batch, Field

DIGEST = {"digest": Field((), "uint8")}  # the field by which a cache's record names its example
ENDLESS = 2**40  # batches; a run stops long before


def example_digest(example: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint8 [8], of the example's token ids; the same in every process and on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for field in ("source", "target"):
        digest.update(len(example[field]).to_bytes(4, "little") + example[field].astype("<i4").tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def lengths_of(examples: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """int32, the longer of source and target of each example."""
    return np.asarray([max(len(e["source"]), len(e["target"])) for e in examples], np.int32)


class Split:
    """An encoded split, its examples' lengths, and the signals that go with it.

    Attributes:
      examples: the store of encoded examples.
      lengths: int32, the longer of source and target of each example.
      payloads: signal name -> store, record i belonging to example i.
    """

    def __init__(self, folder: Path, name: str, payloads: Mapping[str, Store] | None = None):
        """Raises KdError if a signal's store has another number of records."""
        self.name, self.examples, self.payloads = name, Store(folder, name), dict(payloads or {})
        self.lengths = np.load(folder / f"{name}.lengths.npy")
        for signal, store in self.payloads.items():
            if len(store) != len(self.examples):
                raise KdError(f"cache {signal}: {len(store)} records for {len(self.examples)} examples of {name}")

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, i: int) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """(example i, signal name -> its record).

        Raises:
          KdError: if a record was made for other token ids.
        """
        example = self.examples[i]
        records = {signal: dict(store[i]) for signal, store in self.payloads.items()}
        for signal, record in records.items():
            if not np.array_equal(record.pop("digest"), example_digest(example)):
                raise KdError(
                    f"cache {signal}: record {i} was made for other token ids than example {i} of {self.name}"
                )
        return example, records


def pad(split: Split, indices: Sequence[int], rows: int, length: int) -> Batch:
    """The examples as one Batch of `rows` rows, padded to `length`; rows left over have index -1."""
    batch = Batch(
        index_B=np.full(rows, -1, np.int32),
        source_BS=np.zeros((rows, length), np.int32),
        source_mask_BS=np.zeros((rows, length), bool),
        inputs_BT=np.zeros((rows, length), np.int32),
        targets_BT=np.zeros((rows, length), np.int32),
        mask_BT=np.zeros((rows, length), bool),
        weight_B=np.ones(rows, np.float32),
        payload={
            signal: {
                name: np.zeros((rows, length, *field.shape), field.dtype)
                for name, field in store.schema.items()
                if name not in DIGEST
            }
            for signal, store in split.payloads.items()
        },
    )
    for row, i in enumerate(indices):
        example, records = split.read(i)
        source, target = example["source"], example["target"]
        batch.index_B[row] = i
        batch.source_BS[row, : len(source)] = source
        batch.source_mask_BS[row, : len(source)] = True
        batch.inputs_BT[row, : len(target)] = [START, *target[:-1]]
        batch.targets_BT[row, : len(target)] = target
        batch.mask_BT[row, : len(target)] = example["mask"]
        if "weight" in example:
            batch.weight_B[row] = example["weight"][0]
        for signal, record in records.items():
            for name, values in record.items():
                batch.payload[signal][name][row, : len(values)] = values
    return batch


class TrainBatches(grain.sources.RandomAccessDataSource):
    """Training batches without end, by number.

    An epoch holds a fixed number of batches: each bucket's examples are permuted by (seed, epoch, bucket)
    and cut into batches, those left over waiting for another epoch's permutation (a bucket with too few
    for one batch repeats them); then the batches are permuted.
    """

    def __init__(
        self,
        split: Split,
        buckets: Sequence[int],
        tokens_per_batch: int,
        divisor: int,
        seed: int,
        shard_index: int,
        shard_count: int,
    ):
        self._split, self._seed, self._shard_index, self._shard_count = split, seed, shard_index, shard_count
        place = np.searchsorted(buckets, split.lengths)
        self._buckets = []  # (length, rows, examples) of every bucket that has examples
        for b, length in enumerate(buckets):
            rows = max(1, tokens_per_batch // length // divisor) * divisor
            members = np.flatnonzero(place == b)
            if len(members):
                self._buckets.append((length, rows, members))
        if not self._buckets:
            raise KdError(f"buckets: {tuple(buckets)}; no training example is that short, wanted longer buckets")
        self.per_epoch = sum(max(1, len(members) // rows) for _, rows, members in self._buckets)
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """[(length, example numbers)] of one epoch's batches, in order."""
        batches = []
        for b, (length, rows, members) in enumerate(self._buckets):
            order = np.random.default_rng((self._seed, epoch, b)).permutation(members)
            count = max(1, len(members) // rows)
            batches += [(length, part) for part in np.resize(order, (count, rows))]
        order = np.random.default_rng((self._seed, epoch)).permutation(len(batches))
        return [batches[i] for i in order]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> Batch:
        epoch, place = divmod(int(i), self.per_epoch)
        length, indices = self.epoch(epoch)[place]
        mine = np.split(indices, self._shard_count)[self._shard_index]
        return pad(self._split, mine, len(mine), length)

    def __repr__(self) -> str:
        # grain keeps this beside an iterator's state and refuses a state of another source.
        return f"TrainBatches({self._split.name}, seed={self._seed})"


def train_batches(
    split: Split,
    *,
    buckets: Sequence[int],
    tokens_per_batch: int,
    divisor: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """Training batches, made ahead of time in a thread; the iterator's state is saved with checkpoints.

    Args:
      split: with the signals that the terms read.
      buckets: padded lengths, ascending; longer examples are left out.
      tokens_per_batch: padded target tokens of a batch over all hosts.
      divisor: devices times microbatches; every batch has a multiple of it.
      seed: decides the order.
      shard_index, shard_count: this host's slice.
    """
    source = TrainBatches(split, buckets, tokens_per_batch, divisor, seed, shard_index, shard_count)
    return grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))


class EvalBatches(Sequence):
    """Every example exactly once, in batches of one size for each length.

    Examples beyond the last bucket are not cut: they get multiples of it.
    """

    def __init__(
        self,
        split: Split,
        buckets: Sequence[int],
        batch_size: int,
        divisor: int = 1,
        indices: Sequence[int] | None = None,
    ):
        self._split = split
        self._rows = -(-batch_size // divisor) * divisor
        indices = np.arange(len(split)) if indices is None else np.asarray(indices)
        padded = padded_lengths(split.lengths[indices], buckets)
        self._plan = [
            (int(length), part) for length in np.unique(padded) for part in _cut(indices[padded == length], self._rows)
        ]

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, i: Any) -> Batch:
        length, indices = self._plan[i]
        return pad(self._split, indices, self._rows, length)


def padded_lengths(lengths: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """The smallest bucket that holds each length, or the smallest multiple of the last bucket."""
    last = buckets[-1]
    fitting = np.asarray(buckets)[np.minimum(np.searchsorted(buckets, lengths), len(buckets) - 1)]
    return np.where(lengths <= last, fitting, -(-lengths // last) * last)


def _cut(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
