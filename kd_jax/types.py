"""The few types that every wing shares.

Letters in names are shapes: B batch, S source length, T target length, D model width, V vocabulary,
K support of a signal, N tokens in a chunk, L layers, H heads.
"""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Params = chex.ArrayTree
Payload = Mapping[str, Array]


class Tokens(NamedTuple):
    """Padded rows of token ids.

    Attributes:
      ids_BT: int32, zeros where padded.
      position_BT: int32, a token's place in its example, from 0.
      segment_BT: int32, the number of the example that a token belongs to, plus 1 (in a split; of prompts any number
        will do); 0 is padding. Attention never crosses segments, and dropout follows them.

    Examples:
      >>> tokens = Tokens(  # two examples in one row, and one place that is padding
      ...     ids_BT=jnp.array([[5, 2, 7, 8, 0]]),
      ...     position_BT=jnp.array([[0, 1, 0, 1, 0]]),
      ...     segment_BT=jnp.array([[1, 1, 2, 2, 0]]),
      ... )
      >>> (tokens.segment_BT > 0).sum().item()
      4
    """

    ids_BT: Array
    position_BT: Array
    segment_BT: Array


class Inputs(NamedTuple):
    """All that a network may see.

    Attributes:
      index_B: int32, the number of the row's first example in its encoded split; -1 marks a row that only fills up.
      decoder: the decoder's input tokens.
      encoder: the encoder's, or None where the network has no encoder.

    Examples:
      >>> zeros = jnp.zeros((2, 3), jnp.int32)
      >>> inputs = Inputs(index_B=jnp.array([17, -1]), decoder=Tokens(zeros, zeros, zeros), encoder=None)
      >>> (inputs.index_B >= 0).tolist()  # the second row only fills up
      [True, False]
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

    Examples:
      >>> ids = jnp.array([[1, 5, 6]])  # start, "a", "b"; to predict: "a", "b", end
      >>> inputs = Inputs(jnp.array([0]), Tokens(ids, jnp.array([[0, 1, 2]]), jnp.ones_like(ids)), None)
      >>> mask = jnp.array([[False, True, True]])  # "a" is part of the prompt
      >>> batch = Batch(inputs, jnp.array([[5, 6, 2]]), mask, jnp.ones((1, 3)), payload={})
      >>> batch.targets_BT[batch.mask_BT].tolist()
      [6, 2]
    """

    inputs: Inputs
    targets_BT: Array
    mask_BT: Array
    weight_BT: Array
    payload: Mapping[str, Payload]


class Sum(NamedTuple):
    """A weighted sum on its way to a mean: sums are added over chunks, microbatches and devices.

    Attributes:
      value: float32, sum of the values that count.
      weight: int32, how many they are.

    Examples:
      >>> long, short = Sum(np.float32(6.0), np.int32(3)), Sum(np.float32(4.0), np.int32(1))
      >>> Sum(long.value + short.value, long.weight + short.weight).mean()  # 10 / 4; the mean of means would be 3
      array(2.5)
    """

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
