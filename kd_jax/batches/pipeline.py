"""From stored examples to padded batches.

Batch i of training is a pure function of (seed, i): so a run goes on at step n knowing only n, and any
number of hosts reads slices of the same batches. Record i of a signal's cache belongs to example i of
the split; the two are zipped before anything is shuffled, and each record is checked against its example.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from kd_jax.artifacts import files
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches.buckets import cut, filled, pack, padded_lengths, place, rows_within
from kd_jax.batches.layouts import Bucket, Layout, Segment
from kd_jax.batches.store import Store
from kd_jax.errors import KdError
from kd_jax.tasks.base import ENCODED, Encoded
from kd_jax.types import Batch, Field, Inputs

DIGEST = {"digest": Field((), "uint8")}  # the field by which a cache's record names its example
INFERENCE_BATCH_SIZE = 64  # rows of a batch outside training: evaluation, caching, decoding
ENDLESS = 2**40  # batches; a run stops long before


def example_digest(encoded: Encoded) -> np.ndarray:
    """uint8 [8], of the example's token ids and which of them count; the same in every process and on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for ids in (encoded.prompt, encoded.completion):
        digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
    digest.update(encoded.counts.tobytes())
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
        self.lengths = files.read_array(folder.file(f"{name}.lengths.npy"))
        for signal, store in self.payloads.items():
            if len(store) != len(self.examples):
                raise KdError(f"cache {signal}: {len(store)} records for {len(self.examples)} examples of {name}")

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, i: int) -> Segment:
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
        return Segment(int(i), encoded, weight, records)

    def batch(self, layout: Layout, rows: Sequence[Sequence[int]], count: int, bucket: Bucket) -> Batch:
        """One Batch of `count` rows, from the numbers of the examples in each."""
        schemas = {
            signal: {name: field for name, field in store.schema.items() if name not in DIGEST}
            for signal, store in self.payloads.items()
        }
        return layout.batch([[self.read(i) for i in row] for row in rows], count, bucket, schemas)


class TrainBatches(grain.sources.RandomAccessDataSource):
    """Training batches without end, by number.

    An epoch holds a fixed number of batches: each bucket's rows are permuted by (seed, epoch, bucket)
    and cut into batches, those left over waiting for another epoch's permutation (a bucket with too few
    for one batch repeats them); then the batches are permuted. A row is one example, or, packed, the
    examples that the seed put side by side, all in the last bucket.
    """

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
        """Arguments as `train_batches`."""
        self._split, self._layout, self._seed, self._shard = split, layout, seed, shard
        places = place(split.lengths, buckets, layout)
        if not (places < len(buckets)).any():
            raise KdError(f"buckets: {tuple(buckets)}; no training example is that short, wanted longer buckets")
        if packed:
            fitting = np.flatnonzero(places < len(buckets)).astype(np.uint32)
            sizes, room = (layout.sizes(x) for x in (split.lengths[fitting], np.asarray(buckets[-1])))
            rows = pack(sizes, room, seed)
            members = {buckets[-1]: dataclasses.replace(rows, numbers_N=fitting[rows.numbers_N])}
        else:
            numbers = {bucket: np.flatnonzero(places == b) for b, bucket in enumerate(buckets)}
            members = {bucket: numbers_N.astype(np.uint32)[:, None] for bucket, numbers_N in numbers.items()}
        width = lambda bucket: layout.sizes(np.asarray(bucket))[-1]  # noqa: E731  # of the targets
        self._divisor = divisor
        self._buckets = [  # (bucket, rows of a batch, the examples in each row) of every bucket that has examples
            (bucket, max(1, tokens_per_batch // width(bucket)), rows) for bucket, rows in members.items() if len(rows)
        ]
        batches = [max(1, len(rows) // count) for _, count, rows in self._buckets]  # of each bucket in an epoch
        self.per_epoch, self._first = sum(batches), np.cumsum([0, *batches])
        self._orders = functools.lru_cache(maxsize=2)(self._orders_of)

    def _orders_of(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """(order of an epoch's batches, order of each bucket's rows); before it the batches stand bucket by bucket."""
        rows = [
            np.random.default_rng((self._seed, epoch, b)).permutation(len(rows)).astype(np.uint32)
            for b, (_, _, rows) in enumerate(self._buckets)
        ]
        return np.random.default_rng((self._seed, epoch)).permutation(self.per_epoch), rows

    def plan(self, i: int) -> tuple[Bucket, list[np.ndarray]]:
        """(bucket, the examples in each row) of batch i."""
        epoch, place = divmod(int(i), self.per_epoch)
        order, row_orders = self._orders(epoch)
        b = int(np.searchsorted(self._first, order[place], side="right")) - 1
        bucket, count, rows = self._buckets[b]
        start = int(order[place] - self._first[b]) * count
        part = row_orders[b].take(np.arange(start, start + count), mode="wrap")  # too few for one batch are repeated
        return bucket, [rows[int(row)] for row in part]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> Batch:
        bucket, rows = self.plan(i)
        # Empty rows fill it up, so that which examples it has does not depend on the number of devices.
        share = filled(len(rows), self._divisor) // self._shard[1]
        mine = rows[self._shard[0] * share :][:share]
        return self._split.batch(self._layout, mine, share, bucket)

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
      packed: whether several examples share a row.
      divisor: devices times microbatches; every batch is filled up to a multiple of it.
      seed: decides the order.
      shard: (this host, hosts): a batch's slice.
    """
    source = TrainBatches(split, layout, buckets, **options)
    return grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))


class EvalBatches(Sequence):
    """Every example exactly once, one a row, in batches of one size for each length.

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
        shard: tuple[int, int] = (0, 1),
    ):
        """Args: as `train_batches`; batch_size: rows of a batch, fewer of long ones; indices: some examples alone."""
        self._split, self._layout, self._shard = split, layout, shard
        indices = np.arange(len(split)) if indices is None else np.asarray(indices)
        padded = padded_lengths(split.lengths[indices], buckets, layout)
        buckets = sorted({Bucket(*map(int, lengths)) for lengths in padded})
        self._rows = {
            bucket: rows_within(batch_size, divisor, int(layout.sizes(np.asarray(bucket)).max())) for bucket in buckets
        }
        self.plan = [  # each batch's bucket and example numbers
            (bucket, part)
            for bucket in buckets
            for part in cut(indices[(padded == bucket).all(-1)], self._rows[bucket])
        ]

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, i: Any) -> Batch:
        bucket, indices = self.plan[i]
        share = self._rows[bucket] // self._shard[1]
        mine = indices[self._shard[0] * share :][:share]
        return self._split.batch(self._layout, mine[:, None], share, bucket)


class PromptBatches(Sequence):
    """Prompts in batches of one size for each padded length, for decoding.

    A prompt longer than the last length gets a multiple of it, in fewer rows.
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
        """Args: prompts: int32 [P] each; widths: padded lengths, ascending; indices: their numbers, from 0 where None.

        The rest as EvalBatches.
        """
        self._layout = layout
        self._prompts = dict(zip(range(len(prompts)) if indices is None else indices, prompts, strict=True))
        lengths_N, last = np.asarray([len(prompt) for prompt in prompts], int), widths[-1]
        fitting_N = np.asarray(widths)[np.minimum(np.searchsorted(widths, lengths_N), len(widths) - 1)]
        padded_N = np.where(lengths_N > last, -(-lengths_N // last) * last, fitting_N)
        numbers_N = np.asarray(list(self._prompts), int)
        self._rows = {width: rows_within(batch_size, divisor, width) for width in np.unique(padded_N).tolist()}
        self.plan = [  # each batch's padded length and the numbers of its prompts
            (width, part) for width, rows in self._rows.items() for part in cut(numbers_N[padded_N == width], rows)
        ]

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, i: Any) -> Inputs:
        width, numbers = self.plan[i]
        inputs = self._layout.prompts([self._prompts[n] for n in numbers], self._rows[width], width)
        index_B = np.full(self._rows[width], -1, np.int32)
        index_B[: len(numbers)] = numbers
        return inputs._replace(index_B=index_B)
