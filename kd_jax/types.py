"""The few types that every floor shares.

Letters in names are shapes: B batch, S source length, T target length, D model width, V vocabulary,
K support of a signal, N tokens in a chunk, L layers, H heads.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import chex
import numpy as np

Array = chex.Array
Params = chex.ArrayTree
Payload = Mapping[str, Array]


class Batch(NamedTuple):
    """Examples of one length bucket, padded to it.

    Attributes:
      index_B: int32, the example's number in its encoded split; -1 marks a row that only fills up.
      source_BS: int32 token ids of the source (zeros where padded).
      source_mask_BS: bool, true on source tokens.
      inputs_BT: int32 decoder inputs: the start token, then the targets but the last.
      targets_BT: int32 token ids to predict, the end of the sentence included.
      mask_BT: bool, true where a target counts in the loss. Made once, by the task's `encode`.
      payload: signal name -> field name -> [B, T, ...]; what the teacher said about each target.
    """

    index_B: Array
    source_BS: Array
    source_mask_BS: Array
    inputs_BT: Array
    targets_BT: Array
    mask_BT: Array
    payload: Mapping[str, Payload]


class Sum(NamedTuple):
    """A weighted sum on its way to a mean: sums are added over chunks, microbatches and devices."""

    value: Array
    weight: Array

    def mean(self) -> Array:
        """value / weight, and 0 where nothing was counted."""
        return np.divide(self.value, self.weight, out=np.zeros_like(self.value, dtype=float), where=self.weight != 0)


class TrainState(NamedTuple):
    """All that a training step changes, and the key it draws from.

    Attributes:
      step: int32 scalar, updates made so far.
      key: uint32 key data; every draw is folded from it, the step, the place in the model and the example.
      params: the model's parameters.
      opt_state: the optax state.
    """

    step: Array
    key: Array
    params: Params
    opt_state: Any


class DecodeCache(NamedTuple):
    """What decoding one more token needs; every leaf has B as its first axis.

    Attributes:
      self_kv: one (key, value) pair per decoder layer, each [B, H, T, D/H]; position t is filled by step t.
      cross_kv: one (key, value) pair per decoder layer, each [B, H, S, D/H]; constant.
      source_mask_BS: bool.
    """

    self_kv: tuple[tuple[Array, Array], ...]
    cross_kv: tuple[tuple[Array, Array], ...]
    source_mask_BS: Array


class Model(NamedTuple):
    """A network as pure functions of its parameters; outside `models/` nothing else of it is seen.

    Attributes:
      init: key -> params.
      apply: (params, batch, dropout_key or None) -> hidden_BTD, the decoder's last hidden states.
      head: params -> head_DV, so that logits = hidden @ head.
      start: (params, source_BS, source_mask_BS, length) -> DecodeCache with room for `length` tokens.
      decode_step: (params, cache, token_B, position) -> (logits_BV, cache); position is a scalar.
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]
    head: Callable[[Params], Array]
    start: Callable[..., DecodeCache]
    decode_step: Callable[..., tuple[Array, DecodeCache]]


class Field(NamedTuple):
    """One array of a stored record: its shape per token (or per record) and its dtype on disk."""

    shape: tuple[int, ...]
    dtype: str


class Signal(Protocol):
    """What the teacher says about each next token. A frozen dataclass; pure functions, no I/O."""

    temperature: float

    @property
    def name(self) -> str:
        """Names the cache's folder and the batch's payload."""
        ...

    def schema(self, vocab_size: int) -> Mapping[str, Field]:
        """Fields stored per target token."""
        ...

    def covering(self, other: "Signal") -> "Signal":
        """The smallest signal from whose cache both this one and `other` can be read."""
        ...

    def reduce(self, logits_NV: Array) -> Payload:
        """Teacher logits to payload, [N, ...] per field, on the device."""
        ...

    def align(self, logits_NV: Array, payload: Payload) -> tuple[Array, Array]:
        """Student logits and payload to (teacher_logp_NK, student_logp_NK) on one support, at `temperature`."""
        ...
