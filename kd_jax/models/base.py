"""The contract of every network: an `Architecture` builds a `Model`, pure functions of its parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from kd_jax.batches.layouts import Layout
from kd_jax.types import Array, Inputs, Params

Family = Literal["encoder_decoder", "decoder_only"]
KeyValue = tuple[Array, Array]  # keys and values of one layer, each [B, key heads, S, head width]
AxisNames = str | Mapping[str, Any]  # a prefix of the tree of parameters, with the names of axes as leaves


@dataclasses.dataclass(frozen=True)
class Head:
    """The output layer: logits = cap(hidden @ kernel + bias), cropped to the vocabulary.

    Attributes:
      kernel_DV: float [D, V or more]; the transposed embedding if it is tied, else a matrix of its own.
      bias_V: float [V or more], or None.
      soft_cap: logits become soft_cap * tanh(logits / soft_cap) (Gemma 2, arXiv 2408.00118); 0 for no cap.
      vocab_size: V, the tokeniser's number of tokens. Further columns only pad the vocabulary; they are cropped and
        get no probability and no gradient. 0 if there are none.

    Examples:
      >>> head = Head(jnp.eye(2, 3), vocab_size=2)
      >>> print(head.logits(jnp.array([[5.0, 7.0]])))
      [[5. 7.]]
    """

    kernel_DV: Array
    bias_V: Array | None = None
    soft_cap: float = 0.0
    vocab_size: int = 0

    def logits(self, hidden_ND: Array) -> Array:
        """Return the logits of hidden states [N, D], float32 [N, V]."""
        return self.finish_logits(self.raw_logits(hidden_ND), self.bias_V)

    def raw_logits(self, hidden_ND: Array) -> Array:
        """Return hidden @ kernel, multiplied in the dtype of the hidden states and summed in float32."""
        kernel_DV = self.kernel_DV.astype(hidden_ND.dtype)
        return jnp.matmul(hidden_ND, kernel_DV, preferred_element_type=jnp.float32)

    def finish_logits(self, raw_NV: Array, bias_V: Array | None) -> Array:
        """Return raw logits with bias, soft cap and crop applied, float32 [N, V]."""
        logits_NV = raw_NV if bias_V is None else raw_NV + _broadcast_bias(bias_V, raw_NV)
        if self.soft_cap:
            logits_NV = self.soft_cap * jnp.tanh(logits_NV / self.soft_cap)
        return logits_NV[..., : self.vocab_size] if self.vocab_size else logits_NV


jax.tree_util.register_dataclass(Head, ["kernel_DV", "bias_V"], ["soft_cap", "vocab_size"])


def _broadcast_bias(bias_V: Array, logits_NV: Array) -> Array:
    """Return the bias in float32, with as many axes as the logits."""
    return jnp.expand_dims(bias_V.astype(jnp.float32), range(logits_NV.ndim - 1))


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, for decoding; B rows of one text or of K hypotheses each.

    Hypotheses of a row form a tree that shares one array of S slots. Each hypothesis sees the slots of its own
    ancestors, so reordering hypotheses moves a mask and no keys (SpecInfer, arXiv 2305.09781).

    Attributes:
      slot: int32 scalar, the slot of the next token's keys and values; the same in every row.
      position_B: int32, position of the next token in its text.
      visible_BKS: bool, whether hypothesis k has read slot s: false for padding, for tokens of other hypotheses, and
        for unused slots.
      column_S: int32, column of each slot's token in its row, padding included; used by relative positions.
      self_kv: (key, value) of each decoder layer, [B, key heads, S, head width].
      cross_kv: (key, value) of each decoder layer over the encoder's positions, constant; () without an encoder.
      source_BS: bool, true at the encoder's tokens; [B, 0] without an encoder.
    """

    slot: Array
    position_B: Array
    visible_BKS: Array
    column_S: Array
    self_kv: tuple[KeyValue, ...]
    cross_kv: tuple[KeyValue, ...]
    source_BS: Array

    def reserve(self, count: int) -> "Cache":
        """Return the cache with `count` more slots; call it before `fork`."""
        visible_BKS = jnp.pad(self.visible_BKS, [(0, 0), (0, 0), (0, count)])
        self_kv = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 0), (0, count), (0, 0)]), self.self_kv)
        return self._replace(visible_BKS=visible_BKS, column_S=jnp.arange(visible_BKS.shape[2]), self_kv=self_kv)

    def fork(self, hypotheses: int) -> "Cache":
        """Return the cache with each row continued by K hypotheses, which fill K slots at every step."""
        offset_S = self.column_S - self.slot
        column_S = self.slot + jnp.where(offset_S < 0, offset_S, offset_S // hypotheses)
        return self._replace(visible_BKS=jnp.repeat(self.visible_BKS, hypotheses, axis=1), column_S=column_S)

    def reorder(self, parent_BK: Array) -> "Cache":
        """Return the cache in which hypothesis k of row b continues hypothesis `parent_BK[b, k]`."""
        return self._replace(visible_BKS=jnp.take_along_axis(self.visible_BKS, parent_BK[:, :, None], axis=1))

    def rewind(self, count: Array) -> "Cache":
        """Return the cache without the last `count` tokens of every text; only before `fork`."""
        slot = self.slot - count
        visible_BKS = self.visible_BKS & (jnp.arange(self.visible_BKS.shape[2]) < slot)[None, None]
        return self._replace(slot=slot, position_B=self.position_B - count, visible_BKS=visible_BKS)

    def positions_and_visibility(self, count: int) -> tuple[Array, Array]:
        """Return the positions [B, T] and visible slots [B, T, S] of the next T = `count` tokens.

        They are T tokens of one text or, in a forked cache, one token of each of the T hypotheses.
        """
        token_T, slots_1S = jnp.arange(count), jnp.arange(self.visible_BKS.shape[2])[None]
        slot_T1 = self.slot + token_T[:, None]
        if self.visible_BKS.shape[1] > 1:
            return jnp.repeat(self.position_B[:, None], count, axis=1), self.visible_BKS | (slots_1S == slot_T1)[None]
        new_TS = (slots_1S >= self.slot) & (slots_1S <= slot_T1)
        return self.position_B[:, None] + token_T[None], self.visible_BKS | new_TS[None]

    def append(self, visible_BTS: Array, self_kv: tuple[KeyValue, ...]) -> "Cache":
        """Return the cache after T tokens that saw the slots `visible_BTS`."""
        hypotheses, count = self.visible_BKS.shape[1], visible_BTS.shape[1]
        return self._replace(
            slot=self.slot + count,
            position_B=self.position_B + count // hypotheses,
            visible_BKS=visible_BTS[:, -hypotheses:],
            self_kv=self_kv,
        )


class ApplyFunction(Protocol):
    """(params, inputs, dropout_key) -> hidden_BTD; see `Model.apply`."""

    def __call__(self, params: Params, inputs: Inputs, /, dropout_key: Array | None = None) -> Array:
        """Return the decoder's last hidden states."""
        ...


class TapsFunction(Protocol):
    """(params, inputs, dropout_key) -> (hidden_BTD, taps); see `Model.taps`."""

    def __call__(
        self, params: Params, inputs: Inputs, /, dropout_key: Array | None = None
    ) -> tuple[Array, Mapping[str, Array]]:
        """Return the decoder's last hidden states and the layers' activations by name."""
        ...


class Model(NamedTuple):
    """A network as pure functions of its parameters; the only view of a network outside `kd_jax.models`.

    All functions can be jitted, differentiated and mapped. Parameters are nested dictionaries of arrays; each function
    takes them as `init` returns them, or as `stack` arranges them. Without a dropout key nothing is dropped.

    Shapes: B rows, T decoder tokens, D width of the model, V vocabulary, S slots of the cache.

    Attributes:
      init: key -> params, in float32.
      apply: (params, inputs, dropout_key=None) -> hidden_BTD, the decoder's last hidden states. `head` maps them to
        logits; losses do so chunk by chunk.
      taps: (params, inputs, dropout_key=None) -> (hidden_BTD, taps). Taps are activations by name:

        - "decoder_0.hidden": output of a layer, [B, T, D].
        - "decoder_0.q", "decoder_0.k", "decoder_0.v": projections of self-attention, all heads side by side.
        - "decoder_0.heads", "decoder_0.cross_attention.heads": outputs of the heads, side by side.
        - "decoder_0.ffn.neurons": input of the feed-forward layer's output matrix, [B, T, d_ff].
        - "decoder_0.norm_ffn.out", "decoder_norm.out": output of a norm, [B, T, D].

        Layers of an encoder are named "encoder_0" and so on. Unused taps are not computed under jit.
      head: params -> Head, the output layer.
      prefill: (params, inputs, room) -> Cache. Reads the source and all decoder tokens but the last, and reserves slots
        for `room` more. Each decoder row holds one text, padded on the left.
      extend: (params, cache, ids_BT) -> (logits_BTV, cache). Reads T tokens at once and returns the logits of the token
        after each. They are the next T tokens of one text or, in a forked cache, one token of each hypothesis.
      axes: params -> a prefix of their tree with the names of each parameter's axes, such as "model inner" (see
        `kd_jax.models.axes`). A mesh shards parameters by them; "" means replicated.
      stack: params -> params as a training step should hold them. An architecture that scans over its layers returns
        each layer parameter stacked in one array [layers, ...], so compile time does not grow with depth.

    Examples:
      >>> from kd_jax import DecoderOnly
      >>> from kd_jax.types import Tokens
      >>> model = DecoderOnly(layers=1, d_model=8, heads=2, d_ff=16).build(vocab_size=10)
      >>> params = model.init(jax.random.key(0))
      >>> position_BT, segment_BT = jnp.array([[0, 1, 2]]), jnp.array([[1, 1, 1]])
      >>> tokens = Tokens(jnp.array([[1, 5, 7]]), position_BT, segment_BT)
      >>> inputs = Inputs(index_B=jnp.array([0]), decoder=tokens, encoder=None)
      >>> logits_BTV = model.head(params).logits(model.apply(params, inputs))  # teacher-forced
      >>> cache = model.prefill(params, inputs, room=1)
      >>> logits_BV, cache = model.step(params, cache, jnp.array([7]))  # token by token
      >>> logits_BTV.shape, bool(jnp.allclose(logits_BV, logits_BTV[:, -1], atol=1e-5))
      ((1, 3, 10), True)
    """

    init: Callable[[Array], Params]
    apply: ApplyFunction
    taps: TapsFunction
    head: Callable[[Params], Head]
    prefill: Callable[[Params, Inputs, int], Cache]
    extend: Callable[[Params, Cache, Array], tuple[Array, Cache]]
    axes: Callable[[Params], AxisNames] = lambda params: ""
    stack: Callable[[Params], Params] = lambda params: params

    def step(self, params: Params, cache: Cache, token_B: Array) -> tuple[Array, Cache]:
        """Return (logits_BV, cache) after one token of each text; `extend` with T = 1."""
        logits_B1V, cache = self.extend(params, cache, token_B[:, None])
        return logits_B1V[:, 0], cache


class Architecture(Protocol):
    """The hyper-parameters of a network; a frozen dataclass.

    Implement it to distil a network of your own: `Recipe.model` takes any object with these members.

    Attributes:
      family: "encoder_decoder" or "decoder_only"; a task declares the families that it supports.
      dropout: rate, in training only.
      d_model: width of the hidden states.
      context: maximum number of tokens of a text; 0 for no bound.
      layout: makes the layout of the network's batches (`kd_jax.batches.layouts`) from the tokeniser's start token.
    """

    @property
    def family(self) -> Family:
        """The family of networks."""
        ...

    @property
    def dropout(self) -> float:
        """The dropout rate in training."""
        ...

    @property
    def d_model(self) -> int:
        """The width of the hidden states."""
        ...

    @property
    def context(self) -> int:
        """The maximum number of tokens of a text; 0 for no bound."""
        ...

    @property
    def layout(self) -> type[Layout]:
        """The class of the layout."""
        ...

    def check(self) -> None:
        """Check every field.

        Raises:
          KdError: if a field is out of range; the message names it.
        """
        ...

    def stacks(self) -> Mapping[str, int]:
        """Return the number of layers of each stack, such as {"encoder": 3, "decoder": 3}."""
        ...

    def widths(self) -> Mapping[str, int]:
        """Return the widths of a layer's taps: "hidden", and "q", "k", "v" over all heads."""
        ...

    def build(self, vocab_size: int) -> Model:
        """Return the network for a vocabulary of `vocab_size` tokens."""
        ...
