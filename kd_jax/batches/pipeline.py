"""Padded batches from encoded examples on disk: training, evaluation and prompts.

Batch i of training is a pure function of (seed, i). So a run resumes at step n from n alone, and each of several hosts
reads its slice of the same batches. Record i of a signal's cache belongs to example i of the split: both are joined
before examples are shuffled, and each record is checked against its example.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

import grain
import numpy as np

from kd_jax.artifacts import files
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches.buckets import (
    assign_buckets,
    chunks,
    pack_rows,
    padded_lengths,
    round_up,
    rows_per_batch,
    training_rows,
)
from kd_jax.batches.layouts import Bucket, Layout, RowLayout, Segment, host_array
from kd_jax.batches.store import Store
from kd_jax.batches.targets import references_mask
from kd_jax.errors import KdError
from kd_jax.tasks.base import ENCODED, Encoded
from kd_jax.types import Batch, Field, Inputs

BatchT = TypeVar("BatchT")
DIGEST = {"digest": Field((), "uint8")}  # the field of a cache's record that identifies its example
INFERENCE_BATCH_SIZE = 64  # rows of a batch outside training: evaluation, caching, decoding
REMEDY = "Run `cache` again with --force."


def example_digest(encoded: Encoded) -> np.ndarray:
    """Return a hash of an example's token ids and of which of them count, uint8 [8]."""
    digest = hashlib.blake2b(digest_size=8)
    for ids in (encoded.prompt, encoded.completion):
        digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
    digest.update(encoded.counts.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def example_lengths(examples: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Return the number of tokens of each example's prompt and completion, int32 [examples, 2]."""
    lengths = [(len(example["prompt"]), len(example["completion"])) for example in examples]
    return np.asarray(lengths, np.int32).reshape(-1, 2)


class Examples(Protocol):
    """Encoded examples by number; a `Split` is one."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def read(self, i: int) -> Segment:
        """Return example i."""
        ...


class Split:
    """An encoded split, or some of its examples, with their signals.

    Attributes:
      lengths: int32 [examples, 2], tokens of each prompt and completion.
      payloads: signal name -> store; record n belongs to example n of the whole split.
      numbers: int [examples], the numbers in the whole split of the examples that this one holds.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        payloads: Mapping[str, Store] | None = None,
        mask_N: np.ndarray | None = None,
    ):
        """Open a split.

        Args:
          folder: of the phase `prepare`, or of pseudo-targets.
          name: of the split.
          payloads: signal name -> its cache.
          mask_N: which of its examples to hold, bool [N]; None for all.
        """
        self.name, self.examples, self.payloads = name, Store(folder.path, name), dict(payloads or {})
        folder.file(f"{name}.index.json")  # checks its digest
        self.lengths = files.read_array(folder.file(f"{name}.lengths.npy"))
        for signal, store in self.payloads.items():
            if len(store) != len(self.examples):
                raise KdError(
                    f"cache {signal}: expected a record for each of {len(self.examples)} examples of {name}, got "
                    f"{len(store)} records. {REMEDY}"
                )
        self.numbers = np.arange(len(self.examples)) if mask_N is None else np.flatnonzero(mask_N)
        self.lengths = self.lengths[self.numbers]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.numbers)

    def read(self, i: int) -> Segment:
        """Return example i with its signals' records; a record of other token ids is an error."""
        i = int(self.numbers[i])
        example = self.examples[i]
        encoded = Encoded(*(example[field] for field in ENCODED))
        records = {signal: dict(store[i]) for signal, store in self.payloads.items()}
        for signal, record in records.items():
            if not np.array_equal(record.pop("digest"), example_digest(encoded)):
                raise KdError(
                    f"cache {signal}: expected record {i} to have the digest of example {i} of {self.name}, got that "
                    f"of other token ids. {REMEDY}"
                )
        weight = float(example["weight"][0]) if "weight" in example else 1.0
        return Segment(i, encoded, weight, records, own="own" in example and bool(example["own"][0]))

    def count_targets(self) -> int:
        """Return the number of target tokens that count in the loss."""
        return sum(int(self.examples[int(n)]["counts"].sum()) for n in self.numbers)

    def batch(
        self, layout: RowLayout[BatchT], rows: Sequence[np.ndarray] | np.ndarray, count: int, bucket: Bucket
    ) -> BatchT:
        """Return one batch, as `RowLayout.batch`; `rows` holds the numbers of the examples in each row."""
        schemas = {
            signal: {name: field for name, field in store.schema.items() if name not in DIGEST}
            for signal, store in self.payloads.items()
        }
        segments = [[self.read(i) for i in row] for row in rows]
        batch = layout.batch(segments, count, bucket, schemas)
        if "own" in self.examples.schema and isinstance(batch, Batch):
            return cast(BatchT, mark_own(batch, [one.index for row in segments for one in row if one.own]))
        return batch


def mark_own(batch: Batch, numbers: Sequence[int]) -> Batch:
    """Return a batch with `own_BT`, where the examples of these numbers stand."""
    segment_BT = np.asarray(batch.inputs.decoder.segment_BT)
    return batch._replace(own_BT=host_array(np.isin(segment_BT, np.asarray(numbers, np.int32) + 1)))


def with_references(data: Folder, references: int, payloads: Mapping[str, Store] | None = None) -> Split:
    """Return the data's training examples of which a model has the references.

    Args:
      data: the folder of the phase `prepare`.
      references: number of examples; 0 for all.
      payloads: signal name -> its cache.
    """
    return Split(data, "train", payloads, references_mask_of(data, references) if references else None)


def references_mask_of(data: Folder, references: int) -> np.ndarray:
    """Return which records of the data's training split a model has the reference of, bool [N]."""
    owners_N = files.read_array(data.file("train.owners.npy"))
    return references_mask(owners_N, data.outputs()["counts"]["train"], references)


@dataclasses.dataclass(frozen=True)
class _TrainBucket:
    """The rows of one padded length, as numbers of examples; `first` is its first batch in an epoch's plan."""

    bucket: Bucket
    batch_size: int
    rows: Sequence[np.ndarray] | np.ndarray
    first: int


class TrainPlan:
    """Which examples each training batch holds, by number, without end.

    An epoch holds a fixed number of batches. Each bucket's rows are permuted by (seed, epoch, bucket) and cut into
    batches; rows that do not fill a batch wait for another epoch's permutation, and a bucket with too few rows for one
    batch repeats them. Then the batches are permuted. A row is one example. In packed batches it is several examples,
    chosen by the seed, and all rows are in the last bucket.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        layout: Layout,
        buckets: Sequence[Bucket],
        *,
        tokens_per_batch: int,
        packed: bool,
        seed: int,
    ):
        """Plan the batches.

        Args:
          lengths: int [examples, 2], tokens of each prompt and completion.
          layout: the model family's.
          buckets: padded lengths, ascending; longer examples are skipped.
          tokens_per_batch: padded target tokens of a batch over all hosts.
          packed: whether several examples share a row.
          seed: decides the order.
        """
        self._layout, self._seed = layout, seed
        bucket_N = assign_buckets(lengths, buckets, layout)
        if not (bucket_N < len(buckets)).any():
            raise KdError(f"buckets: expected a bucket that holds a training example, got {buckets}. Add a longer one.")
        rows_of: dict[Bucket, Sequence[np.ndarray] | np.ndarray] = {}
        if packed:
            fitting = np.flatnonzero(bucket_N < len(buckets)).astype(np.uint32)
            packed_rows = pack_rows(layout.sizes(lengths[fitting]), layout.sizes(np.asarray(buckets[-1])), seed)
            rows_of[buckets[-1]] = dataclasses.replace(packed_rows, index_N=fitting[packed_rows.index_N])
        else:
            for b, bucket in enumerate(buckets):
                rows_of[bucket] = np.flatnonzero(bucket_N == b).astype(np.uint32)[:, None]
        self._tokens_per_batch = tokens_per_batch
        self._buckets: list[_TrainBucket] = []
        self.batches_per_epoch = 0
        for bucket, rows in rows_of.items():
            if len(rows):
                batch_size = self.batch_rows(bucket)
                self._buckets.append(_TrainBucket(bucket, batch_size, rows, self.batches_per_epoch))
                self.batches_per_epoch += max(1, len(rows) // batch_size)
        self._permutations = functools.lru_cache(maxsize=2)(self._permute)

    def _permute(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return (the order of an epoch's batches, the order of each bucket's rows)."""
        rows = [
            np.random.default_rng((self._seed, epoch, b)).permutation(len(bucket.rows)).astype(np.uint32)
            for b, bucket in enumerate(self._buckets)
        ]
        return np.random.default_rng((self._seed, epoch)).permutation(self.batches_per_epoch), rows

    def batch_rows(self, bucket: Bucket) -> int:
        """Return the rows of a batch of a bucket, over all hosts."""
        return training_rows(self._tokens_per_batch, int(self._layout.sizes(np.asarray(bucket))[-1]))

    def plan(self, i: int) -> tuple[Bucket, list[np.ndarray]]:
        """Return (padded lengths, the numbers of the examples in each row) of batch i."""
        epoch, position = divmod(int(i), self.batches_per_epoch)
        batch_order, row_orders = self._permutations(epoch)
        number = int(batch_order[position])
        b = max(b for b, bucket in enumerate(self._buckets) if bucket.first <= number)
        bucket = self._buckets[b]
        start = (number - bucket.first) * bucket.batch_size
        # A bucket with too few rows for one batch repeats them.
        rows = row_orders[b].take(np.arange(start, start + bucket.batch_size), mode="wrap")
        return bucket.bucket, [bucket.rows[int(row)] for row in rows]


class TrainBatches(TrainPlan, grain.sources.RandomAccessDataSource):
    """Training batches by number, without end; see `TrainPlan`."""

    def __init__(
        self,
        split: Split,
        layout: Layout,
        buckets: Sequence[Bucket],
        *,
        tokens_per_batch: int,
        packed: bool,
        divisor: int,
        seed: int,
        shard: tuple[int, int] = (0, 1),
    ):
        """Plan the batches; further arguments as of `TrainPlan`.

        Args:
          split: with the signals that the terms read.
          layout: the model family's.
          buckets: padded lengths, ascending.
          tokens_per_batch: padded target tokens of a batch over all hosts.
          packed: whether several examples share a row.
          divisor: devices times microbatches; every batch is padded to a multiple of it.
          seed: decides the order.
          shard: (index of this host, number of hosts); a host reads its slice of each batch.
        """
        super().__init__(split.lengths, layout, buckets, tokens_per_batch=tokens_per_batch, packed=packed, seed=seed)
        self._split, self._divisor, self._shard = split, divisor, shard

    def __len__(self) -> int:
        """Return a number that no run reaches."""
        return 2**40

    def __getitem__(self, i: int) -> Batch:
        """Return this host's slice of batch i."""
        bucket, rows = self.plan(i)
        # Padded with empty rows, so that a batch has the same examples on any number of devices.
        index, hosts = self._shard
        count = round_up(len(rows), self._divisor) // hosts
        return self._split.batch(self._layout, rows[index * count :][:count], count, bucket)

    def prefetch(self) -> grain.IterDataset[Batch]:
        """Return the batches in order, prefetched in a thread; the iterator's state is saved with checkpoints."""
        return grain.MapDataset.source(self).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))

    def __repr__(self) -> str:
        """Return the split and the seed."""
        # grain stores this with an iterator's state and rejects the state of another source.
        return f"TrainBatches({self._split.name}, seed={self._seed})"


class PlannedBatches(Sequence[BatchT], Generic[BatchT]):
    """Batches of examples in the order of a plan: (padded lengths, numbers of the examples) of each batch."""

    plan: Sequence[tuple[Any, np.ndarray]]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.plan)


class EvalBatches(PlannedBatches[BatchT]):
    """Every example exactly once, one in a row, in batches of one size for each padded length.

    Examples longer than the last bucket are padded to a multiple of it, in smaller batches.
    """

    def __init__(
        self,
        split: Split,
        layout: RowLayout[BatchT],
        buckets: Sequence[Bucket],
        batch_size: int,
        divisor: int = 1,
        indices: Sequence[int] | np.ndarray | None = None,
        shard: tuple[int, int] = (0, 1),
    ):
        """Plan the batches.

        Args:
          split: the examples.
          layout: the model family's.
          buckets: padded lengths, ascending.
          batch_size: rows of a batch; fewer for long examples.
          divisor: every batch is padded to a multiple of it.
          indices: numbers of some examples; None for all.
          shard: (index of this host, number of hosts).
        """
        self._split, self._layout, self._shard = split, layout, shard
        index_N = np.arange(len(split)) if indices is None else np.asarray(indices)
        padded_N2 = padded_lengths(split.lengths[index_N], buckets, layout)
        shapes = sorted({Bucket(int(prompt), int(completion)) for prompt, completion in padded_N2})
        self._batch_sizes = {
            shape: rows_per_batch(batch_size, divisor, int(layout.sizes(np.asarray(shape)).max())) for shape in shapes
        }
        self.plan = [
            (shape, chunk)
            for shape in shapes
            for chunk in chunks(index_N[(padded_N2 == shape).all(-1)], self._batch_sizes[shape])
        ]

    def __getitem__(self, i: Any) -> BatchT:
        """Return this host's slice of batch i."""
        bucket, index_N = self.plan[i]
        index, hosts = self._shard
        count = self._batch_sizes[bucket] // hosts
        return self._split.batch(self._layout, index_N[index * count :][:count, None], count, bucket)


class PromptBatches(PlannedBatches[Inputs]):
    """Prompts for decoding, in batches of one size for each padded length.

    A prompt longer than the last length is padded to a multiple of it, in smaller batches.
    """

    def __init__(
        self,
        prompts: Sequence[np.ndarray],
        layout: Layout,
        widths: Sequence[int],
        batch_size: int,
        divisor: int = 1,
        indices: Sequence[int] | None = None,
    ):
        """Plan the batches; `indices` are the prompts' numbers, other arguments as of `EvalBatches`."""
        self._layout = layout
        self._prompts = dict(zip(range(len(prompts)) if indices is None else indices, prompts, strict=True))
        lengths_N, last = np.asarray([len(prompt) for prompt in prompts], int), widths[-1]
        fitting_N = np.asarray(widths)[np.minimum(np.searchsorted(widths, lengths_N), len(widths) - 1)]
        padded_N = np.where(lengths_N > last, -(-lengths_N // last) * last, fitting_N)
        index_N = np.asarray(list(self._prompts), int)
        self._batch_sizes = {
            width: rows_per_batch(batch_size, divisor, width) for width in np.unique(padded_N).tolist()
        }
        self.plan = [
            (width, chunk)
            for width, rows in self._batch_sizes.items()
            for chunk in chunks(index_N[padded_N == width], rows)
        ]

    def __getitem__(self, i: Any) -> Inputs:
        """Return batch i."""
        width, indices = self.plan[i]
        count = self._batch_sizes[width]
        inputs = self._layout.prompts([self._prompts[n] for n in indices], count, width)
        index_B = np.full(count, -1, np.int32)
        index_B[: len(indices)] = indices
        return inputs._replace(index_B=host_array(index_B))
