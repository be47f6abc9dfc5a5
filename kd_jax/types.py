"""Types that all folders share.

Letters in names are shapes: B batch, S source length, T target length, D model width, V vocabulary,
K support of a signal, N tokens in a chunk, L layers, H heads.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Example = Mapping[str, str]  # a raw record of a source: field -> text
Params = dict[str, Any]  # nested dictionaries of arrays, by module
Payload = Mapping[str, Array]  # a signal's fields, each [N, ...]


class Tokens(NamedTuple):
    """Padded rows of token ids.

    Attributes:
      ids_BT: int32, zero at padding.
      position_BT: int32, position of a token in its example, from 0.
      segment_BT: int32, 1 + the number of a token's example in its split (any positive number for prompts); 0 is
        padding. Attention does not cross segments, and dropout is drawn per segment.

    Examples:
      >>> tokens = Tokens(  # two examples in one row, then one position of padding
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
    """The inputs of a network.

    Attributes:
      index_B: int32, number of the row's first example in its split; -1 for a row of padding.
      decoder: the decoder's input tokens.
      encoder: the encoder's input tokens; None if the network has no encoder.

    Examples:
      >>> zeros = jnp.zeros((2, 3), jnp.int32)
      >>> inputs = Inputs(index_B=jnp.array([17, -1]), decoder=Tokens(zeros, zeros, zeros), encoder=None)
      >>> (inputs.index_B >= 0).tolist()  # the second row is padding
      [True, False]
    """

    index_B: Array
    decoder: Tokens
    encoder: Tokens | None


class Batch(NamedTuple):
    """Rows of one length bucket: the network's inputs, and the targets of the objective.

    Attributes:
      inputs: the network's inputs.
      targets_BT: int32, the token id to predict at each decoder input.
      mask_BT: bool, whether a target counts in the loss; the task's `encode` decides.
      weight_BT: float32, factor on each target's losses; 1 except for weighted hypotheses of the teacher.
      payload: signal name -> field name -> [B, T, ...], the cached signal of each target.
      own_BT: bool, whether the student wrote the text that a position belongs to; None if it writes none. Losses
        without a signal do not read these targets.

    Examples:
      >>> ids = jnp.array([[1, 5, 6]])  # start, "a", "b"; targets: "a", "b", end
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
    own_BT: Array | None = None


class Sum(NamedTuple):
    """Numerator and denominator of a mean; both are added over chunks, microbatches and devices.

    Attributes:
      value: float32, sum of the values that count.
      weight: int32, number of values that count.

    Examples:
      >>> long, short = Sum(np.float32(6.0), np.int32(3)), Sum(np.float32(4.0), np.int32(1))
      >>> Sum(long.value + short.value, long.weight + short.weight).mean()  # 10 / 4; the mean of means would be 3
      array(2.5)
    """

    value: Array
    weight: Array

    @classmethod
    def over(cls, values_N: Array, mask_N: Array) -> "Sum":
        """Return the sum of values[mask] and their number (int32, exact to 2^31).

        Examples:
          >>> Sum.over(jnp.array([1.0, 2.0, 4.0]), jnp.array([True, False, True])).mean()
          array(2.5)
        """
        return cls(jnp.where(mask_N, values_N, 0.0).sum(dtype=jnp.float32), mask_N.sum(dtype=jnp.int32))

    def mean(self) -> np.ndarray:
        """Return value / weight; 0 if the weight is 0."""
        return np.divide(self.value, self.weight, out=np.zeros_like(self.value, dtype=float), where=self.weight != 0)


class Field(NamedTuple):
    """Shape per token (or per record) and dtype of one array in a stored record."""

    shape: tuple[int, ...]
    dtype: str
