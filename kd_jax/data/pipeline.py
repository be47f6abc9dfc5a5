"""From stored examples to padded batches.

Batch i of training is a pure function of (seed, i): so a run goes on at step n knowing only n, and any
number of hosts reads slices of the same batches. Record i of a signal's cache belongs to example i of
the split; the two are zipped before anything is shuffled, and each record is checked against its example.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from kd_jax.artifacts.manifest import Folder
from kd_jax.data.layouts import Bucket, Layout, Row
from kd_jax.data.store import Store
from kd_jax.errors import KdError
from kd_jax.tasks.base import ENCODED, Encoded
from kd_jax.types import Batch, Field, Inputs

DIGEST = {"digest": Field((), "uint8")}  # the field by which a cache's record names its example
ENDLESS = 2**40  # batches; a run stops long before
# Where examples are taken whole however long they are, an attention's scores of one batch stay below this.
SCORES_BYTES = 256 * 2**20
LONGEST = 8192  # tokens of a prompt or completion: one head's scores of one such row fill SCORES_BYTES


def example_digest(encoded: Encoded) -> np.ndarray:
    """uint8 [8], of the example's token ids; the same in every process and on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for ids in (encoded.prompt, encoded.completion):
        digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def lengths_of(examples: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """int32 [examples, 2]: tokens of each example's prompt and completion."""
    lengths = [(len(example["prompt"]), len(example["completion"])) for example in examples]
    return np.asarray(lengths, np.int32).reshape(-1, 2)


class Split:
    """An encoded split, its examples' lengths, and the signals that go with it.

    Attributes:
      name: of the split.
      examples: the store of encoded examples.
      lengths: int32 [examples, 2], tokens of each prompt and completion.
      payloads: signal name -> store, record i belonging to example i.
    """

    def __init__(self, folder: Folder, name: str, payloads: Mapping[str, Store] | None = None):
        """Raises KdError if a file is not as it was written, or a signal's store has another number of records."""
        self.name, self.examples, self.payloads = name, Store(folder.path, name), dict(payloads or {})
        folder.file(f"{name}.index.json")
        self.lengths = np.load(folder.file(f"{name}.lengths.npy"))
        for signal, store in self.payloads.items():
            if len(store) != len(self.examples):
                raise KdError(f"cache {signal}: {len(store)} records for {len(self.examples)} examples of {name}")

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, i: int) -> Row:
        """Example i with its signals' records.

        Raises:
          KdError: if a record was made for other token ids.
        """
        example = self.examples[i]
        encoded = Encoded(*(example[field] for field in ENCODED))
        records = {signal: dict(store[i]) for signal, store in self.payloads.items()}
        for signal, record in records.items():
            if not np.array_equal(record.pop("digest"), example_digest(encoded)):
                raise KdError(
                    f"cache {signal}: record {i} was made for other token ids than example {i} of {self.name}"
                )
        weight = float(example["weight"][0]) if "weight" in example else 1.0
        return Row(int(i), encoded, weight, records)

    def batch(self, layout: Layout, indices: Sequence[int], count: int, bucket: Bucket) -> Batch:
        """Those examples as one Batch of `count` rows."""
        schemas = {
            signal: {name: field for name, field in store.schema.items() if name not in DIGEST}
            for signal, store in self.payloads.items()
        }
        return layout.batch([self.read(i) for i in indices], count, bucket, schemas)


def place(lengths: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """The first bucket that holds each example's prompt and completion; len(buckets) where none does.

    Examples:
      >>> place(np.array([[3, 9], [9, 3], [20, 3]]), [Bucket(4, 4), Bucket(12, 12)]).tolist()
      [1, 1, 2]
    """
    sides = [np.searchsorted([bucket[side] for bucket in buckets], lengths[:, side]) for side in range(2)]
    return np.maximum(*sides)


class TrainBatches(grain.sources.RandomAccessDataSource):
    """Training batches without end, by number.

    An epoch holds a fixed number of batches: each bucket's examples are permuted by (seed, epoch, bucket)
    and cut into batches, those left over waiting for another epoch's permutation (a bucket with too few
    for one batch repeats them); then the batches are permuted.
    """

    def __init__(
        self,
        split: Split,
        layout: Layout,
        buckets: Sequence[Bucket],
        *,
        tokens_per_batch: int,
        divisor: int,
        seed: int,
        shard: tuple[int, int] = (0, 1),
    ):
        """Arguments as `train_batches`."""
        self._split, self._layout, self._seed, self._shard = split, layout, seed, shard
        places = place(split.lengths, buckets)
        self._buckets = []  # (bucket, rows, examples) of every bucket that has examples
        for b, bucket in enumerate(buckets):
            rows = max(1, tokens_per_batch // bucket.completion // divisor) * divisor
            members = np.flatnonzero(places == b)
            if len(members):
                self._buckets.append((bucket, rows, members))
        if not self._buckets:
            raise KdError(f"buckets: {tuple(buckets)}; no training example is that short, wanted longer buckets")
        self.per_epoch = sum(max(1, len(members) // rows) for _, rows, members in self._buckets)
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> list[tuple[Bucket, np.ndarray]]:
        """[(bucket, example numbers)] of one epoch's batches, in order."""
        batches = []
        for b, (bucket, rows, members) in enumerate(self._buckets):
            order = np.random.default_rng((self._seed, epoch, b)).permutation(members)
            count = max(1, len(members) // rows)
            batches += [(bucket, part) for part in np.resize(order, (count, rows))]
        order = np.random.default_rng((self._seed, epoch)).permutation(len(batches))
        return [batches[i] for i in order]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> Batch:
        epoch, place = divmod(int(i), self.per_epoch)
        bucket, indices = self.epoch(epoch)[place]
        mine = np.split(indices, self._shard[1])[self._shard[0]]
        return self._split.batch(self._layout, mine, len(mine), bucket)

    def __repr__(self) -> str:
        # grain keeps this beside an iterator's state and refuses a state of another source.
        return f"TrainBatches({self._split.name}, seed={self._seed})"


def train_batches(split: Split, layout: Layout, buckets: Sequence[Bucket], **options: Any) -> grain.IterDataset:
    """Training batches, made ahead of time in a thread; the iterator's state is saved with checkpoints.

    Args:
      split: with the signals that the terms read.
      layout: the model family's.
      buckets: padded lengths, ascending; longer examples are left out.
      tokens_per_batch: padded target tokens of a batch over all hosts.
      divisor: devices times microbatches; every batch has a multiple of it.
      seed: decides the order.
      shard: (this host, hosts): a batch's slice.
    """
    source = TrainBatches(split, layout, buckets, **options)
    return grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))


class EvalBatches(Sequence):
    """Every example exactly once, in batches of one size for each length.

    Examples beyond the last bucket are not cut: they get multiples of it, in fewer rows.
    """

    def __init__(
        self,
        split: Split,
        layout: Layout,
        buckets: Sequence[Bucket],
        batch_size: int,
        divisor: int = 1,
        indices: Sequence[int] | None = None,
    ):
        """Args: as `train_batches`; batch_size: rows of a batch, fewer of long ones; indices: some examples alone."""
        self._split, self._layout = split, layout
        indices = np.arange(len(split)) if indices is None else np.asarray(indices)
        padded = padded_lengths(split.lengths[indices], buckets)
        self._plan = [
            (bucket, rows, part)
            for bucket in sorted({Bucket(*map(int, lengths)) for lengths in padded})
            for rows in [rows_within(batch_size, divisor, bucket)]
            for part in _cut(indices[(padded == bucket).all(-1)], rows)
        ]

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, i: Any) -> Batch:
        bucket, rows, indices = self._plan[i]
        return self._split.batch(self._layout, indices, rows, bucket)

    def plan(self) -> list[tuple[Bucket, np.ndarray]]:
        """Each batch's bucket and example numbers."""
        return [(bucket, indices) for bucket, _, indices in self._plan]

    def prompts(self, i: int) -> Inputs:
        """What decoding the examples of batch i begins with."""
        bucket, rows, indices = self._plan[i]
        prompts = [self._split.read(k).encoded.prompt for k in indices]
        index_B = np.full(rows, -1, np.int32)
        index_B[: len(indices)] = indices
        return self._layout.prompts(prompts, rows, bucket)._replace(index_B=index_B)


def padded_lengths(lengths: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """The first bucket that holds each example, or the smallest multiple of the last one; int [examples, 2].

    Examples:
      >>> padded_lengths(np.array([[3, 9], [30, 3]]), [Bucket(4, 4), Bucket(12, 12)]).tolist()
      [[12, 12], [36, 36]]
    """
    last = np.asarray(buckets[-1])
    fitting = np.asarray(buckets)[np.minimum(place(lengths, buckets), len(buckets) - 1)]
    times = (-(-lengths // last)).max(-1, keepdims=True)
    return np.where(times > 1, times * last, fitting)


def rows_within(batch_size: int, divisor: int, bucket: Bucket) -> int:
    """Rows of a batch: `batch_size`, or as many as keep a head's float32 scores within SCORES_BYTES.

    At least `divisor`, and a multiple of it.

    Examples:
      >>> rows_within(64, 1, Bucket(36, 36)), rows_within(64, 1, Bucket(4096, 64))
      (64, 4)
    """
    fitting = SCORES_BYTES // (4 * max(bucket) ** 2)
    return max(1, min(-(-batch_size // divisor), fitting // divisor)) * divisor


def _cut(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
