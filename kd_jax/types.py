"""The few types that every wing shares.

Letters in names are shapes: B batch, S source length, T target length, D model width, V vocabulary,
K support of a signal, N tokens in a chunk, L layers, H heads.
"""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

Array = chex.Array
Params = chex.ArrayTree
Payload = Mapping[str, Array]


class Tokens(NamedTuple):
    """Padded rows of token ids.

    Attributes:
      ids_BT: int32, zeros where padded.
      position_BT: int32, a token's place in its example, from 0.
      segment_BT: int32, which of the row's examples a token belongs to, from 1; 0 is padding. Attention
        never crosses segments.
    """

    ids_BT: Array
    position_BT: Array
    segment_BT: Array


class Inputs(NamedTuple):
    """All that a network may see.

    Attributes:
      index_B: int32, the example's number in its encoded split; -1 marks a row that only fills up.
      decoder: the decoder's input tokens.
      encoder: the encoder's, or None where the network has no encoder.
    """

    index_B: Array
    decoder: Tokens
    encoder: Tokens | None


class Batch(NamedTuple):
    """Inputs of one length bucket, and what an objective reads. A layout makes it.

    Attributes:
      inputs: what the network sees.
      targets_BT: int32 token ids to predict, one for each decoder input.
      mask_BT: bool, true where a target counts in the loss: said once, by the task's `encode`. Which positions
        exist is another matter, and the segments' to say.
      weight_BT: float32, factor on each target's losses; 1 but for weighted hypotheses of the teacher.
      payload: signal name -> field name -> [B, T, ...]; what the teacher said about each target.
    """

    inputs: Inputs
    targets_BT: Array
    mask_BT: Array
    weight_BT: Array
    payload: Mapping[str, Payload]


class Sum(NamedTuple):
    """A weighted sum on its way to a mean: sums are added over chunks, microbatches and devices."""

    value: Array
    weight: Array

    @classmethod
    def over(cls, values_N: Array, mask_N: Array) -> "Sum":
        """The sum over masked-in tokens, and their number (int32: exact to 2^31).

        Examples:
          >>> Sum.over(jnp.array([1.0, 2.0, 4.0]), jnp.array([True, False, True])).mean()
          array(2.5)
        """
        return cls(jnp.where(mask_N, values_N, 0.0).sum(dtype=jnp.float32), mask_N.sum(dtype=jnp.int32))

    def mean(self) -> Array:
        """value / weight, and 0 where nothing was counted."""
        return np.divide(self.value, self.weight, out=np.zeros_like(self.value, dtype=float), where=self.weight != 0)


class Field(NamedTuple):
    """One array of a stored record: its shape per token (or per record) and its dtype on disk."""

    shape: tuple[int, ...]
    dtype: str
