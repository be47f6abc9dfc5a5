"""The few types that every floor shares.

Letters in names are shapes: B batch, S source length, T target length, D model width, V vocabulary,
K support of a signal, N tokens in a chunk, L layers, H heads.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
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
      weight_B: float32, factor on each example's losses; 1 but for weighted hypotheses of the teacher.
      payload: signal name -> field name -> [B, T, ...]; what the teacher said about each target.
    """

    index_B: Array
    source_BS: Array
    source_mask_BS: Array
    inputs_BT: Array
    targets_BT: Array
    mask_BT: Array
    weight_B: Array
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
      adapters: term name -> parameters that only its loss uses (projections between widths); they are
        trained along and saved with the optimiser's state, never with the model.
      opt_state: the optax state of (params, adapters).
    """

    step: Array
    key: Array
    params: Params
    adapters: Mapping[str, Params]
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


def _over_tokens(bias_V: Array, logits_NV: Array) -> Array:
    """The bias in float32, with as many axes as the logits."""
    return jnp.expand_dims(bias_V.astype(jnp.float32), range(logits_NV.ndim - 1))


@dataclasses.dataclass(frozen=True)
class Head:
    """The output layer: logits = cap(hidden @ kernel + bias), without the columns that only pad the vocabulary.

    Attributes:
      kernel_DV: float [D, V or more]; a tied model's transposed embedding, or a matrix of its own.
      bias_V: float [V or more], or None.
      soft_cap: logits become soft_cap * tanh(logits / soft_cap) (Gemma 2, arXiv 2408.00118); 0 for none.
      vocab_size: V, tokens that the tokeniser knows; further columns are cut off, so they get no
        probability and no gradient. 0 where there are none.
    """

    kernel_DV: Array
    bias_V: Array | None = None
    soft_cap: float = 0.0
    vocab_size: int = 0

    def raw(self, hidden_ND: Array) -> Array:
        """hidden @ kernel, summed in float32."""
        return jnp.matmul(hidden_ND, self.kernel_DV, preferred_element_type=jnp.float32)

    def finish(self, raw_NV: Array, bias_V: Array | None) -> Array:
        """Bias, cap and cut: float32 [N, V]."""
        logits_NV = raw_NV if bias_V is None else raw_NV + _over_tokens(bias_V, raw_NV)
        if self.soft_cap:
            logits_NV = self.soft_cap * jnp.tanh(logits_NV / self.soft_cap)
        return logits_NV[..., : self.vocab_size] if self.vocab_size else logits_NV

    def logits(self, hidden_ND: Array) -> Array:
        """float32 [N, V]."""
        return self.finish(self.raw(hidden_ND), self.bias_V)


jax.tree_util.register_dataclass(Head, ["kernel_DV", "bias_V"], ["soft_cap", "vocab_size"])


class Model(NamedTuple):
    """A network as pure functions of its parameters; outside `models/` nothing else of it is seen.

    Attributes:
      init: key -> params.
      apply: (params, batch, dropout_key or None) -> hidden_BTD, the decoder's last hidden states.
      taps: as apply, -> (hidden_BTD, taps): what the layers hold, by "STACK_LAYER.hidden" (what leaves
        the layer, [B, T, D]) and "STACK_LAYER.q", ".k", ".v" (self-attention, heads side by side, [B, T, D]).
      head: params -> Head.
      start: (params, source_BS, source_mask_BS, length) -> DecodeCache with room for `length` tokens.
      decode_step: (params, cache, token_B, position) -> (logits_BV, cache); position is a scalar.
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]
    taps: Callable[..., tuple[Array, Mapping[str, Array]]]
    head: Callable[[Params], Head]
    start: Callable[..., DecodeCache]
    decode_step: Callable[..., tuple[Array, DecodeCache]]


class Field(NamedTuple):
    """One array of a stored record: its shape per token (or per record) and its dtype on disk."""

    shape: tuple[int, ...]
    dtype: str


class Signal(Protocol):
    """What the teacher says about each next token. A frozen dataclass; pure functions, no I/O."""

    temperature: Any

    @property
    def name(self) -> str:
        """Names the cache's folder and the batch's payload."""
        ...

    def supports(self, loss: Callable[..., Array]) -> bool:
        """Whether the divergence means something on this signal's support."""
        ...

    def schema(self, vocab_size: int) -> Mapping[str, Field] | None:
        """Fields stored per target token; None where the teacher stands in the step and nothing is stored."""
        ...

    def covering(self, other: "Signal") -> "Signal":
        """The smallest signal from whose cache both this one and `other` can be read."""
        ...

    def reduce(self, logits_NV: Array, key_N: Array) -> Payload:
        """Teacher logits to payload, [N, ...] per field, on the device; key_N: one random key per token."""
        ...

    def align(self, logits_NV: Array, payload: Payload, temperature: Any) -> tuple[Array, Array]:
        """Student logits and payload to (teacher_logp_NK, student_logp_NK) on one support."""
        ...


class Features(Protocol):
    """What the teacher holds inside, for a term with the teacher in the step. A frozen dataclass; no I/O."""

    def source(self) -> bool:
        """Whether its positions are those of the source (else of the target)."""
        ...

    def init(self, key: Array, student: Mapping[str, Array], teacher: Mapping[str, Array]) -> Params:
        """Trained parameters of the comparison, from the shapes of both sides' taps; {} for none."""
        ...

    def align(self, student: Mapping[str, Array], teacher: Mapping[str, Array], mask_BT: Array, adapter: Params):
        """(teacher_PBTX, student_PBTX): P comparisons at every position, for a loss over X."""
        ...
