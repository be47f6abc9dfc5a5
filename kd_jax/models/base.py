"""What other wings see of a network: an architecture builds a model, a bundle of pure functions of its parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from kd_jax.types import Array, Params


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

    Examples:
      >>> head = Head(jnp.eye(2, 3), vocab_size=2)
      >>> print(head.logits(jnp.array([[5.0, 7.0]])))
      [[5. 7.]]
    """

    kernel_DV: Array
    bias_V: Array | None = None
    soft_cap: float = 0.0
    vocab_size: int = 0

    def raw_logits(self, hidden_ND: Array) -> Array:
        """hidden @ kernel, multiplied in the type of the hidden states, summed in float32."""
        kernel_DV = self.kernel_DV.astype(hidden_ND.dtype)
        return jnp.matmul(hidden_ND, kernel_DV, preferred_element_type=jnp.float32)

    def finish_logits(self, raw_NV: Array, bias_V: Array | None) -> Array:
        """Bias, cap and cut: float32 [N, V]."""
        logits_NV = raw_NV if bias_V is None else raw_NV + _over_tokens(bias_V, raw_NV)
        if self.soft_cap:
            logits_NV = self.soft_cap * jnp.tanh(logits_NV / self.soft_cap)
        return logits_NV[..., : self.vocab_size] if self.vocab_size else logits_NV

    def logits(self, hidden_ND: Array) -> Array:
        """float32 [N, V]."""
        return self.finish_logits(self.raw_logits(hidden_ND), self.bias_V)


jax.tree_util.register_dataclass(Head, ["kernel_DV", "bias_V"], ["soft_cap", "vocab_size"])


class Cache(NamedTuple):
    """What decoding goes on from: of every row one text, or K hypotheses that share what all of them begin with.

    Hypotheses are a tree in one row of slots: each sees those of its own ancestors, so that going on from another
    moves a mask and no keys (as SpecInfer's, arXiv 2305.09781, over tokens that it drafts).

    Attributes:
      slot: int32 scalar, where the next token's keys and values go; the same in every row.
      position_B: int32, the next token's position in its text.
      visible_BKS: bool, which slots each hypothesis has read: neither the padding of a prompt, nor what others wrote, nor
        what is still to be written.
      column_S: int32, how far along its text a slot stands, padding included.
      self_kv: one (key, value) pair per decoder layer, each [B, heads of keys and values, S, width of a head].
      cross_kv: one (key, value) pair per decoder layer, with the source's places for slots; constant. () where
        there is no encoder.
      source_BS: bool, true on the encoder's tokens; [B, 0] where there is no encoder.
    """

    slot: Array
    position_B: Array
    visible_BKS: Array
    column_S: Array
    self_kv: tuple[tuple[Array, Array], ...]
    cross_kv: tuple[tuple[Array, Array], ...]
    source_BS: Array

    def reserve(self, count: int) -> "Cache":
        """Room for `count` more tokens, before it is forked."""
        visible_BKS = jnp.pad(self.visible_BKS, [(0, 0), (0, 0), (0, count)])
        self_kv = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 0), (0, count), (0, 0)]), self.self_kv)
        return self._replace(visible_BKS=visible_BKS, column_S=jnp.arange(visible_BKS.shape[2]), self_kv=self_kv)

    def fork(self, hypotheses: int) -> "Cache":
        """Every row goes on as so many hypotheses, which take a slot each at every step."""
        behind_S = self.column_S - self.slot
        column_S = self.slot + jnp.where(behind_S < 0, behind_S, behind_S // hypotheses)
        return self._replace(visible_BKS=jnp.repeat(self.visible_BKS, hypotheses, axis=1), column_S=column_S)

    def reorder(self, origin_BK: Array) -> "Cache":
        """Hypothesis k of row b goes on from what hypothesis `origin_BK[b, k]` has read."""
        return self._replace(visible_BKS=jnp.take_along_axis(self.visible_BKS, origin_BK[:, :, None], axis=1))

    def rewind(self, count: Array) -> "Cache":
        """Forgets the last `count` tokens of every text, if it is not forked; their slots are written anew."""
        slot = self.slot - count
        visible_BKS = self.visible_BKS & (jnp.arange(self.visible_BKS.shape[2]) < slot)[None, None]
        return self._replace(slot=slot, position_B=self.position_B - count, visible_BKS=visible_BKS)

    def positions_and_visibility(self, count: int) -> tuple[Array, Array]:
        """(positions [B, T], slots seen [B, T, S]) of the next T tokens: of a text, or one of each hypothesis."""
        token_T, slots_1S = jnp.arange(count), jnp.arange(self.visible_BKS.shape[2])[None]
        slot_T1 = self.slot + token_T[:, None]
        if self.visible_BKS.shape[1] > 1:
            return jnp.repeat(self.position_B[:, None], count, axis=1), self.visible_BKS | (slots_1S == slot_T1)[None]
        own_TS = (slots_1S >= self.slot) & (slots_1S <= slot_T1)
        return self.position_B[:, None] + token_T[None], self.visible_BKS | own_TS[None]

    def append(self, seen_BTS: Array, self_kv: tuple[tuple[Array, Array], ...]) -> "Cache":
        """The cache once those T tokens are read, which saw these slots."""
        hypotheses, count = self.visible_BKS.shape[1], seen_BTS.shape[1]
        return self._replace(
            slot=self.slot + count,
            position_B=self.position_B + count // hypotheses,
            visible_BKS=seen_BTS[:, -hypotheses:],
            self_kv=self_kv,
        )


class Model(NamedTuple):
    """A network as pure functions of its parameters; outside `models/` nothing else of it is seen.

    Attributes:
      init: key -> params.
      apply: (params, inputs, dropout_key or None) -> hidden_BTD, the decoder's last hidden states.
      taps: as apply, -> (hidden_BTD, taps): what the layers hold, by "STACK_LAYER.hidden" (what leaves
        the layer, [B, T, D]), "STACK_LAYER.q", ".k", ".v" (self-attention, as projected, heads side by side),
        "STACK_LAYER.heads" and "STACK_LAYER.cross_attention.heads" (what the heads saw, side by side),
        "STACK_LAYER.ffn.neurons" (what reaches the output matrix, [B, T, d_ff]) and "NORM.out" of every norm, such as
        "decoder_0.norm_ffn.out". What nobody reads is not computed.
      head: params -> Head.
      prefill: (params, inputs, room) -> Cache with all but the last decoder token read, and room for `room` more.
        Rows of the decoder's inputs hold one text each, padded on the left.
      extend: (params, cache, ids_BT) -> (logits_BTV, cache): what follows each of T tokens, read at once: the next of a
        text, or where the cache is forked, one of each hypothesis.
      axes: params -> a prefix of their tree with the names of every parameter's axes, such as "model inner" (see
        kd_jax.models.axes), by which a mesh cuts them; "" for what every device holds whole.
      stack: params -> params as a training step should hold them: with the layers' own side by side in one array where
        they are scanned over, so that neither their gradients nor their updates are compiled for each layer. Every
        function above takes both.
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]
    taps: Callable[..., tuple[Array, Mapping[str, Array]]]
    head: Callable[[Params], Head]
    prefill: Callable[..., Cache]
    extend: Callable[..., tuple[Array, Cache]]
    axes: Callable[[Params], Any] = lambda params: ""
    stack: Callable[[Params], Params] = lambda params: params

    def step(self, params: Params, cache: Cache, token_B: Array) -> tuple[Array, Cache]:
        """(logits_BV, cache): `extend` by one token."""
        logits_B1V, cache = self.extend(params, cache, token_B[:, None])
        return logits_B1V[:, 0], cache


class Architecture(Protocol):
    """Hyper-parameters of a network; a frozen dataclass.

    Attributes:
      family: "encoder_decoder" or "decoder_only"; what a task can be served by.
      dropout: rate, in training only.
      d_model: width of the hidden states.
      context: the most tokens of a text; 0 where there is no bound.
      layout: how examples become its rows (kd_jax.batches.layouts); built from the tokeniser's start.
    """

    family: str
    dropout: float
    d_model: int
    context: int
    layout: type[Any]

    def check(self) -> None:
        """Raises KdError naming the field that is out of range."""
        ...

    def stacks(self) -> Mapping[str, int]:
        """Stack -> number of layers, such as {"encoder": 3, "decoder": 3}."""
        ...

    def widths(self) -> Mapping[str, int]:
        """Width of what the layers hold: "hidden", and "q", "k" and "v" of all heads together."""
        ...

    def build(self, vocab_size: int) -> Model:
        """The network over a vocabulary."""
        ...
