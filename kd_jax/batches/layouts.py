"""From encoded examples to padded rows: what stands where in a batch. A layout belongs to a family of models."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from kd_jax.tasks.base import Encoded
from kd_jax.types import Batch, Field, Inputs, Tokens

Records = Mapping[str, Mapping[str, np.ndarray]]
Schemas = Mapping[str, Mapping[str, Field]]


class Bucket(NamedTuple):
    """Padded lengths that a batch is compiled for; examples up to both fit."""

    prompt: int
    completion: int


class Segment(NamedTuple):
    """One example on its way into a row.

    Attributes:
      index: its number in the encoded split.
      encoded: its token ids.
      weight: factor on its losses.
      records: signal name -> field -> [tokens that count, ...]; what the teacher said about them.
    """

    index: int
    encoded: Encoded
    weight: float
    records: Records


Rows = Sequence[Sequence[Segment]]  # one segment a row, or several side by side: packed


class Layout(Protocol):
    """How examples become rows; pure functions on the host. A row may hold several, which never see each other.

    Attributes:
      start: the id that decoding begins with, which is the tokeniser's to say.
      forced_prefix: ids that every completion begins with, which decoding is given too.
    """

    start: int
    forced_prefix: tuple[int, ...]

    @staticmethod
    def sizes(lengths: np.ndarray) -> np.ndarray:
        """Lengths of (prompt, completion), int [..., 2], as what a row has room for, int [..., sides].

        For examples (those in one row are added up) and for buckets alike.
        """
        ...

    def batch(self, rows: Rows, count: int, bucket: Bucket, schemas: Schemas) -> Batch:
        """Examples as a Batch of `count` rows; rows left over have index -1 and segment 0."""
        ...

    def prompts(self, prompts: Sequence[np.ndarray], count: int, width: int) -> Inputs:
        """What decoding begins with, in `count` rows of prompts padded to `width`.

        The decoder's last column is the token to go on from.
        """
        ...


@dataclasses.dataclass(frozen=True)
class EncoderDecoderLayout:
    """The prompt to the encoder, the completion, shifted right behind the start token, to the decoder.

    Each side is padded to its own length.

    Examples:
      >>> prompts = EncoderDecoderLayout(start=1).prompts([np.array([7, 8, 2])], count=1, width=4)
      >>> prompts.encoder.ids_BT.tolist(), prompts.encoder.segment_BT.tolist(), prompts.decoder.ids_BT.tolist()
      ([[7, 8, 2, 0]], [[1, 1, 1, 0]], [[1]])
      >>> EncoderDecoderLayout(start=1, forced_prefix=(9,)).prompts([np.array([7])], count=1, width=1).decoder.ids_BT.tolist()
      [[1, 9]]
    """

    start: int
    forced_prefix: tuple[int, ...] = ()

    @staticmethod
    def sizes(lengths: np.ndarray) -> np.ndarray:
        """As Layout.sizes: two sides, each with room of its own."""
        return np.asarray(lengths)

    def batch(self, rows: Rows, count: int, bucket: Bucket, schemas: Schemas) -> Batch:
        """As Layout.batch."""
        targets = [
            [(one.encoded.completion, one.encoded.counts[len(one.encoded.prompt) :]) for one in row] for row in rows
        ]
        prompts = [[(one.index + 1, one.encoded.prompt) for one in row] for row in rows]
        encoder = side_by_side(prompts, (count, bucket.prompt))
        return _batch(self.start, rows, targets, encoder, (count, bucket.completion), schemas)

    def prompts(self, prompts: Sequence[np.ndarray], count: int, width: int) -> Inputs:
        """As Layout.prompts: the decoder begins with the start token and the forced_prefix."""
        given = [self.start, *self.forced_prefix]
        decoder = side_by_side([[(1, given)]] * len(prompts), (count, len(given)))
        encoder = side_by_side([[(1, ids)] for ids in prompts], (count, width))
        return Inputs(np.full(count, -1, np.int32), decoder, encoder)


@dataclasses.dataclass(frozen=True)
class DecoderOnlyLayout:
    """Prompt and completion one behind the other in one row, shifted right behind the start token.

    Examples:
      >>> prompts = DecoderOnlyLayout(start=1).prompts([np.array([7, 8, 2]), np.array([9])], count=2, width=4)
      >>> prompts.decoder.ids_BT.tolist()  # padded on the left: all rows go on from their last column
      [[0, 1, 7, 8, 2], [0, 0, 0, 1, 9]]
      >>> DecoderOnlyLayout.sizes(np.array([[3, 5], [2, 2]])).tolist()
      [[8], [4]]
    """

    start: int
    forced_prefix: tuple[int, ...] = ()

    @staticmethod
    def sizes(lengths: np.ndarray) -> np.ndarray:
        """As Layout.sizes: both share a row's room."""
        return np.asarray(lengths).sum(-1, keepdims=True)

    def batch(self, rows: Rows, count: int, bucket: Bucket, schemas: Schemas) -> Batch:
        """As Layout.batch."""
        texts = [
            [(np.concatenate([one.encoded.prompt, one.encoded.completion]), one.encoded.counts) for one in row]
            for row in rows
        ]
        return _batch(self.start, rows, texts, None, (count, sum(bucket)), schemas)

    def prompts(self, prompts: Sequence[np.ndarray], count: int, width: int) -> Inputs:
        """As Layout.prompts: the start token, the prompt and the forced_prefix, padded on the left."""
        length = 1 + width + len(self.forced_prefix)
        tokens = side_by_side([[(1, [self.start, *ids, *self.forced_prefix])] for ids in prompts], (count, length))
        lengths_B = (tokens.segment_BT > 0).sum(-1)
        left = (np.arange(length) + lengths_B[:, None]) % length  # column 0 goes to the first real place
        decoder = Tokens(*(np.take_along_axis(x_BT, left, axis=1) for x_BT in tokens))
        return Inputs(np.full(count, -1, np.int32), decoder, None)


@dataclasses.dataclass(frozen=True)
class EachLayout:
    """The same examples in the same rows of several layouts, such as the teacher's and the student's.

    Attributes:
      layouts: what makes each of the Batches.

    Examples:
      >>> both = EachLayout((EncoderDecoderLayout(start=1), DecoderOnlyLayout(start=1)))
      >>> both.sizes(np.array([3, 5])).tolist()  # room is needed in all of them
      [3, 5, 8]
    """

    layouts: tuple[Layout, ...]

    def sizes(self, lengths: np.ndarray) -> np.ndarray:
        """As Layout.sizes: the sides of all layouts."""
        return np.concatenate([layout.sizes(lengths) for layout in self.layouts], axis=-1)

    def batch(self, rows: Rows, count: int, bucket: Bucket, schemas: Schemas) -> tuple[Batch, ...]:
        """As Layout.batch, of each layout; their targets that count are the same, in the same order."""
        batches = {layout: layout.batch(rows, count, bucket, schemas) for layout in set(self.layouts)}
        return tuple(batches[layout] for layout in self.layouts)


def side_by_side(rows: Sequence[Sequence[tuple[int, Sequence[int]]]], shape: tuple[int, int]) -> Tokens:
    """Rows of (segment, token ids) one behind another, from the left; positions restart with each.

    Examples:
      >>> tokens = side_by_side([[(8, [5, 6]), (3, [7])]], (1, 4))
      >>> tokens.ids_BT.tolist(), tokens.position_BT.tolist(), tokens.segment_BT.tolist()
      ([[5, 6, 7, 0]], [[0, 1, 0, 0]], [[8, 8, 3, 0]])
    """
    tokens = Tokens(*(np.zeros(shape, np.int32) for _ in Tokens._fields))
    for b, row in enumerate(rows):
        start = 0
        for segment, ids in row:
            here = slice(start, start + len(ids))
            tokens.ids_BT[b, here] = ids
            tokens.position_BT[b, here] = np.arange(len(ids))
            tokens.segment_BT[b, here] = segment
            start += len(ids)
    return tokens


def _batch(
    start_id: int,
    rows: Rows,
    targets: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    encoder: Tokens | None,
    shape: tuple[int, int],
    schemas: Schemas,
) -> Batch:
    """A Batch from each segment's targets and which of them count."""
    targets_BT, mask_BT, weight_BT = np.zeros(shape, np.int32), np.zeros(shape, bool), np.ones(shape, np.float32)
    payload = {
        signal: {name: np.zeros((*shape, *field.shape), field.dtype) for name, field in schema.items()}
        for signal, schema in schemas.items()
    }
    for b, row in enumerate(rows):
        start = 0
        for one, (ids, counts) in zip(row, targets[b], strict=True):
            here = slice(start, start + len(ids))
            targets_BT[b, here], mask_BT[b, here], weight_BT[b, here] = ids, counts, one.weight
            places = start + np.flatnonzero(counts)
            for signal, record in one.records.items():
                for name, values in record.items():
                    payload[signal][name][b, places] = values
            start += len(ids)
    index_B = np.full(shape[0], -1, np.int32)
    index_B[: len(rows)] = [row[0].index for row in rows]
    inputs = [
        [(one.index + 1, [start_id, *ids][: len(ids)]) for one, (ids, _) in zip(row, of_row, strict=True)]
        for row, of_row in zip(rows, targets, strict=True)
    ]
    decoder = side_by_side(inputs, shape)
    return Batch(Inputs(index_B, decoder, encoder), targets_BT, mask_BT, weight_BT, payload)
