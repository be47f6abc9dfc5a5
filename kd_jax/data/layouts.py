"""From encoded examples to padded rows: what stands where in a batch. A layout belongs to a family of models."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from kd_jax.data.tokenizers import START
from kd_jax.tasks.base import Encoded
from kd_jax.types import Batch, Field, Inputs, Tokens

Records = Mapping[str, Mapping[str, np.ndarray]]
Schemas = Mapping[str, Mapping[str, Field]]


class Bucket(NamedTuple):
    """Padded lengths that a batch is compiled for; examples up to both fit."""

    prompt: int
    completion: int


class Row(NamedTuple):
    """One example on its way into a batch.

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


class Layout(Protocol):
    """How examples become rows; pure functions on the host."""

    def batch(self, rows: Sequence[Row], count: int, bucket: Bucket, schemas: Schemas) -> Batch:
        """Examples as a Batch of `count` rows; rows left over have index -1 and segment 0."""
        ...

    def prompts(self, prompts: Sequence[np.ndarray], count: int, bucket: Bucket) -> Inputs:
        """What decoding begins with, in `count` rows: the decoder's last column is the token to go on from."""
        ...


@dataclasses.dataclass(frozen=True)
class EncoderDecoderLayout:
    """The prompt to the encoder, the completion, shifted right behind the start token, to the decoder.

    Each side is padded to its own length.

    Examples:
      >>> prompts = EncoderDecoderLayout().prompts([np.array([7, 8, 2])], count=1, bucket=Bucket(4, 9))
      >>> prompts.encoder.ids_BT.tolist(), prompts.encoder.segment_BT.tolist(), prompts.decoder.ids_BT.tolist()
      ([[7, 8, 2, 0]], [[1, 1, 1, 0]], [[1]])
    """

    def batch(self, rows: Sequence[Row], count: int, bucket: Bucket, schemas: Schemas) -> Batch:
        """As Layout.batch."""
        shape = (count, bucket.completion)
        targets_BT, mask_BT = np.zeros(shape, np.int32), np.zeros(shape, bool)
        weight_BT = np.ones(shape, np.float32)
        payload = {
            signal: {name: np.zeros((*shape, *field.shape), field.dtype) for name, field in schema.items()}
            for signal, schema in schemas.items()
        }
        for b, row in enumerate(rows):
            completion, counts = row.encoded.completion, row.encoded.counts
            targets_BT[b, : len(completion)], mask_BT[b, : len(completion)] = completion, counts
            weight_BT[b] = row.weight
            places = np.flatnonzero(counts)
            for signal, record in row.records.items():
                for name, values in record.items():
                    payload[signal][name][b, places] = values
        index_B = np.full(count, -1, np.int32)
        index_B[: len(rows)] = [row.index for row in rows]
        inputs = Inputs(
            index_B,
            decoder=_tokens([[START, *row.encoded.completion[:-1]] for row in rows], shape),
            encoder=_tokens([row.encoded.prompt for row in rows], (count, bucket.prompt)),
        )
        return Batch(inputs, targets_BT, mask_BT, weight_BT, payload)

    def prompts(self, prompts: Sequence[np.ndarray], count: int, bucket: Bucket) -> Inputs:
        """As Layout.prompts: the decoder begins with the start token."""
        decoder = _tokens([[START]] * len(prompts), (count, 1))
        return Inputs(np.full(count, -1, np.int32), decoder, _tokens(prompts, (count, bucket.prompt)))


def _tokens(rows: Sequence[Sequence[int]], shape: tuple[int, int]) -> Tokens:
    """One example a row, at its beginning."""
    tokens = Tokens(*(np.zeros(shape, np.int32) for _ in Tokens._fields))
    for b, ids in enumerate(rows):
        tokens.ids_BT[b, : len(ids)] = ids
        tokens.position_BT[b, : len(ids)] = np.arange(len(ids))
        tokens.segment_BT[b, : len(ids)] = 1
    return tokens
