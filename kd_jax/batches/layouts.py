"""Layouts: encoded examples as padded rows of a batch. Each family of models has its own layout."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np

from kd_jax.tasks.base import Encoded
from kd_jax.types import Array, Batch, Field, Inputs, Payload, Tokens

Records = Mapping[str, Mapping[str, np.ndarray]]
Schemas = Mapping[str, Mapping[str, Field]]
BatchT = TypeVar("BatchT", covariant=True)


class Bucket(NamedTuple):
    """Padded lengths that a batch is compiled for, in tokens; examples up to both lengths fit."""

    prompt: int
    completion: int


class Segment(NamedTuple):
    """One encoded example with all that a row holds of it.

    Attributes:
      index: its number in the encoded split.
      weight: factor on its losses.
      records: signal name -> field -> [tokens that count, ...].
      own: whether its target is a text of the student's own.
    """

    index: int
    encoded: Encoded
    weight: float
    records: Records
    own: bool = False


Rows = Sequence[Sequence[Segment]]  # one segment a row, or several: packed


class RowLayout(Protocol[BatchT]):
    """How examples become rows of a training or evaluation batch."""

    def sizes(self, lengths: np.ndarray) -> np.ndarray:
        """Return the room that lengths [..., prompt and completion] take in a row, int [..., sides].

        The same for examples and for buckets. The sizes of examples in one row are added up.
        """
        ...

    def batch(self, rows: Rows, count: int, bucket: Bucket, schemas: Schemas) -> BatchT:
        """Return a batch of `count` rows; further rows have index -1 and segment 0.

        Args:
          rows: the examples of each row.
          count: number of rows, at least len(rows).
          bucket: padded lengths.
          schemas: signal name -> field -> shape per token and dtype.
        """
        ...


class Layout(RowLayout[Batch], Protocol):
    """How a family's examples become rows, in training and in decoding; pure functions on the host.

    Several examples may share a row; they never attend to each other.

    Attributes:
      start: the tokeniser's id that decoding starts with.
      forced_prefix: ids that every completion starts with, before decoding chooses a token.
    """

    def __init__(self, start: int, forced_prefix: tuple[int, ...] = ()) -> None:
        """Set the attributes; an architecture names the class of its layout."""
        ...

    @property
    def start(self) -> int:
        """The id that decoding starts with."""
        ...

    @property
    def forced_prefix(self) -> tuple[int, ...]:
        """The ids that every completion starts with."""
        ...

    @staticmethod
    def sizes(lengths: np.ndarray) -> np.ndarray:
        """Return the room that lengths take in a row; see `RowLayout.sizes`."""
        ...

    def prompts(self, prompts: Sequence[np.ndarray], count: int, width: int) -> Inputs:
        """Return the inputs that decoding starts from; the decoder's last column is the token to continue from.

        Args:
          prompts: int32 [P] each.
          count: number of rows, at least len(prompts).
          width: padded length of the prompts.
        """
        ...


@dataclasses.dataclass(frozen=True)
class EncoderDecoderLayout:
    """The prompt goes to the encoder; the completion, shifted right behind the start token, to the decoder.

    Each side is padded to its own length.

    Examples:
      >>> layout = EncoderDecoderLayout(start=1, forced_prefix=(9,))
      >>> prompts = layout.prompts([np.array([7, 8, 2])], count=1, width=4)
      >>> prompts.encoder.ids_BT.tolist(), prompts.encoder.segment_BT.tolist(), prompts.decoder.ids_BT.tolist()
      ([[7, 8, 2, 0]], [[1, 1, 1, 0]], [[1, 9]])
    """

    start: int
    forced_prefix: tuple[int, ...] = ()

    @staticmethod
    def sizes(lengths: np.ndarray) -> np.ndarray:
        """Return the lengths: each side has its own room."""
        return np.asarray(lengths)

    def batch(self, rows: Rows, count: int, bucket: Bucket, schemas: Schemas) -> Batch:
        """Return a batch, as `RowLayout.batch`."""
        targets = [
            [(segment.encoded.completion, segment.encoded.counts[len(segment.encoded.prompt) :]) for segment in row]
            for row in rows
        ]
        prompts = [[(segment.index + 1, segment.encoded.prompt) for segment in row] for row in rows]
        encoder = concat_segments(prompts, (count, bucket.prompt))
        return _batch(self.start, rows, targets, encoder, (count, bucket.completion), schemas)

    def prompts(self, prompts: Sequence[np.ndarray], count: int, width: int) -> Inputs:
        """Return inputs whose decoder starts with the start token and the forced prefix."""
        prefix = [self.start, *self.forced_prefix]
        decoder = concat_segments([[(1, prefix)]] * len(prompts), (count, len(prefix)))
        encoder = concat_segments([[(1, ids)] for ids in prompts], (count, width))
        return Inputs(host_array(np.full(count, -1, np.int32)), decoder, encoder)


@dataclasses.dataclass(frozen=True)
class DecoderOnlyLayout:
    """Prompt and completion are concatenated in one row, shifted right behind the start token.

    Examples:
      >>> prompts = DecoderOnlyLayout(start=1).prompts([np.array([7, 8, 2]), np.array([9])], count=2, width=4)
      >>> prompts.decoder.ids_BT.tolist()  # padded on the left: all rows continue from their last column
      [[0, 1, 7, 8, 2], [0, 0, 0, 1, 9]]
      >>> DecoderOnlyLayout.sizes(np.array([[3, 5], [2, 2]])).tolist()
      [[8], [4]]
    """

    start: int
    forced_prefix: tuple[int, ...] = ()

    @staticmethod
    def sizes(lengths: np.ndarray) -> np.ndarray:
        """Return the sum of both lengths: prompt and completion share a row."""
        return np.asarray(lengths).sum(-1, keepdims=True)

    def batch(self, rows: Rows, count: int, bucket: Bucket, schemas: Schemas) -> Batch:
        """Return a batch, as `RowLayout.batch`."""
        texts = [
            [(np.concatenate([one.encoded.prompt, one.encoded.completion]), one.encoded.counts) for one in row]
            for row in rows
        ]
        return _batch(self.start, rows, texts, None, (count, sum(bucket)), schemas)

    def prompts(self, prompts: Sequence[np.ndarray], count: int, width: int) -> Inputs:
        """Return rows of start token, prompt and forced prefix, padded on the left."""
        length = 1 + width + len(self.forced_prefix)
        tokens = concat_segments([[(1, [self.start, *ids, *self.forced_prefix])] for ids in prompts], (count, length))
        lengths_B = (tokens.segment_BT > 0).sum(-1)
        left = (np.arange(length) + lengths_B[:, None]) % length  # moves the padding to the front
        decoder = Tokens(*(host_array(np.take_along_axis(np.asarray(x_BT), left, axis=1)) for x_BT in tokens))
        return Inputs(host_array(np.full(count, -1, np.int32)), decoder, None)


@dataclasses.dataclass(frozen=True)
class JointLayout:
    """The same examples in the same rows of several layouts; a row needs room in all of them.

    Examples:
      >>> joint = JointLayout((EncoderDecoderLayout(start=1), DecoderOnlyLayout(start=1)))
      >>> joint.sizes(np.array([3, 5])).tolist()
      [3, 5, 8]
    """

    layouts: tuple[Layout, ...]

    def sizes(self, lengths: np.ndarray) -> np.ndarray:
        """Return the sizes of all layouts, side by side."""
        return np.concatenate([layout.sizes(lengths) for layout in self.layouts], axis=-1)

    def batch(self, rows: Rows, count: int, bucket: Bucket, schemas: Schemas) -> tuple[Batch, ...]:
        """Return a batch of each layout; the targets that count are the same, in the same order."""
        batches = {layout: layout.batch(rows, count, bucket, schemas) for layout in set(self.layouts)}
        return tuple(batches[layout] for layout in self.layouts)


def concat_segments(rows: Sequence[Sequence[tuple[int, Sequence[int] | np.ndarray]]], shape: tuple[int, int]) -> Tokens:
    """Return rows of concatenated (segment number, token ids), padded on the right; positions restart.

    Examples:
      >>> tokens = concat_segments([[(8, [5, 6]), (3, [7])]], (1, 4))
      >>> tokens.ids_BT.tolist(), tokens.position_BT.tolist(), tokens.segment_BT.tolist()
      ([[5, 6, 7, 0]], [[0, 1, 0, 0]], [[8, 8, 3, 0]])
    """
    ids_BT, position_BT, segment_BT = (np.zeros(shape, np.int32) for _ in range(3))
    for b, row in enumerate(rows):
        start = 0
        for segment, ids in row:
            columns = slice(start, start + len(ids))
            ids_BT[b, columns] = ids
            position_BT[b, columns] = np.arange(len(ids))
            segment_BT[b, columns] = segment
            start += len(ids)
    return Tokens(host_array(ids_BT), host_array(position_BT), host_array(segment_BT))


def _batch(
    start_id: int,
    rows: Rows,
    targets: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    encoder: Tokens | None,
    shape: tuple[int, int],
    schemas: Schemas,
) -> Batch:
    """Return a Batch from (target ids, whether each counts) of each segment of each row."""
    targets_BT, mask_BT, weight_BT = np.zeros(shape, np.int32), np.zeros(shape, bool), np.ones(shape, np.float32)
    payload = {
        signal: {name: np.zeros((*shape, *field.shape), field.dtype) for name, field in schema.items()}
        for signal, schema in schemas.items()
    }
    for b, row in enumerate(rows):
        start = 0
        for segment, (ids, counts) in zip(row, targets[b], strict=True):
            columns = slice(start, start + len(ids))
            targets_BT[b, columns], mask_BT[b, columns], weight_BT[b, columns] = ids, counts, segment.weight
            counted = start + np.flatnonzero(counts)
            for signal, record in segment.records.items():
                for name, values in record.items():
                    payload[signal][name][b, counted] = values
            start += len(ids)
    index_B = np.full(shape[0], -1, np.int32)
    index_B[: len(rows)] = [row[0].index for row in rows]
    inputs = [
        [(segment.index + 1, [start_id, *ids][: len(ids)]) for segment, (ids, _) in zip(row, row_targets, strict=True)]
        for row, row_targets in zip(rows, targets, strict=True)
    ]
    return Batch(
        Inputs(host_array(index_B), concat_segments(inputs, shape), encoder),
        host_array(targets_BT),
        host_array(mask_BT),
        host_array(weight_BT),
        cast(Mapping[str, Payload], payload),
    )


def host_array(x: np.ndarray) -> Array:
    """Return a numpy array as the type of a Batch's fields; `Devices.shard` makes it a JAX array."""
    return cast(Array, x)
