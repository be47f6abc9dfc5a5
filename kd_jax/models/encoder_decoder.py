"""Encoder-decoder Transformer, as a frozen configuration that builds pure functions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.data.layouts import EncoderDecoderLayout
from kd_jax.errors import KdError
from kd_jax.models.base import Cache, Head, Model
from kd_jax.models.layers import NORMS, Block, Dropout, mask_bias, same_segment, sinusoids, split_heads
from kd_jax.types import Array, Inputs, Params, Tokens


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
    """Hyper-parameters; teacher and student are two of these over one vocabulary.

    Attributes:
      encoder_layers, decoder_layers: depth.
      d_model, heads, d_ff: width, attention heads, width of the feed-forward layers.
      dropout: rate after the embeddings and each sub-layer, in training only.
      norm: "rms" (arXiv 1910.07467) or "layer".
      tied: whether the output matrix is the embedding, transposed.
      head_bias: whether the logits have a bias.
      soft_cap: bound of the logits, by tanh; 0 for none.
      vocab_multiple: the embedding's rows are padded to a multiple of it; the pads get no probability.

    Examples:
      >>> student = EncoderDecoder(encoder_layers=2, decoder_layers=1, d_model=8, heads=2, d_ff=16, vocab_multiple=8)
      >>> model = student.build(vocab_size=10)
      >>> params = jax.eval_shape(model.init, jax.random.key(0))
      >>> params["embedding"].shape, student.stacks()
      ((16, 8), {'encoder': 2, 'decoder': 1})
    """

    encoder_layers: int = 3
    decoder_layers: int = 3
    d_model: int = 128
    heads: int = 4
    d_ff: int = 512
    dropout: float = 0.1
    norm: Literal["rms", "layer"] = "rms"
    tied: bool = True
    head_bias: bool = False
    soft_cap: float = 0.0
    vocab_multiple: int = 1

    layout = EncoderDecoderLayout()

    def padded(self, vocab_size: int) -> int:
        """Rows of the embedding for a tokeniser of `vocab_size` tokens."""
        return -(-vocab_size // self.vocab_multiple) * self.vocab_multiple

    def check(self) -> None:
        """Raises KdError if heads do not divide d_model, or a size or rate is out of range; names the field."""
        for field in ("encoder_layers", "decoder_layers", "d_model", "heads", "d_ff", "vocab_multiple"):
            size = vars(self)[field]
            if type(size) is not int or size < 1:
                raise KdError(f"model.{field}: {size}; wanted a whole number of at least 1")
        if self.d_model % (2 * self.heads):
            raise KdError(f"model.heads: {self.heads}; wanted a number that divides half of d_model = {self.d_model}")
        if self.norm not in NORMS:
            raise KdError(f"model.norm: {self.norm!r}; wanted {' or '.join(NORMS)}")
        if not 0 <= self.dropout < 1:
            raise KdError(f"model.dropout: {self.dropout}; wanted a rate in [0, 1)")
        if not 0 <= self.soft_cap < float("inf"):
            raise KdError(f"model.soft_cap: {self.soft_cap}; wanted 0 (none) or a positive number")

    def stacks(self) -> dict[str, int]:
        """Stack -> number of layers."""
        return {"encoder": self.encoder_layers, "decoder": self.decoder_layers}

    def build(self, vocab_size: int) -> Model:
        """The network as pure functions; raises KdError as `check`."""
        self.check()
        net = Network(self, vocab_size)

        def init(key: Array) -> Params:
            one = Tokens(*(jnp.full((1, 1), i, jnp.int32) for i in (1, 0, 1)))
            return net.init(key, Inputs(jnp.ones(1, jnp.int32), one, one))["params"]

        def apply(params: Params, inputs: Inputs, dropout_key: Array | None = None) -> Array:
            rngs = {} if dropout_key is None else {"dropout": dropout_key}
            return net.apply({"params": params}, inputs, rngs=rngs)

        def taps(params: Params, inputs: Inputs, dropout_key: Array | None = None):
            rngs = {} if dropout_key is None else {"dropout": dropout_key}
            hidden_BTD, variables = net.apply({"params": params}, inputs, rngs=rngs, mutable=["taps"])
            return hidden_BTD, _by_name(variables["taps"])

        def bound(method):
            return lambda params, *args: net.apply({"params": params}, *args, method=method)

        return Model(init, apply, taps, bound(net.head), bound(net.prefill), bound(net.step))


def _by_name(taps: Mapping[str, Any]) -> dict[str, Array]:
    """What the layers sowed, as "encoder_0.q"; a layer runs once, so each was sown once."""
    leaves = jax.tree_util.tree_leaves_with_path(taps)
    named = [([key.key for key in path if isinstance(key, jax.tree_util.DictKey)], leaf) for path, leaf in leaves]
    return {f"{keys[0]}.{keys[-1]}": leaf for keys, leaf in named}


class Network(nn.Module):
    """Layers are a plain loop: easy to pick from, and faster on CPU than a scan."""

    config: EncoderDecoder
    vocab_size: int

    def setup(self):
        c = self.config
        block = lambda cross: Block(c.d_model, c.heads, c.d_ff, c.dropout, c.norm, cross)  # noqa: E731
        norm = NORMS[c.norm]
        rows = c.padded(self.vocab_size)
        initializer = nn.initializers.normal(c.d_model**-0.5)
        self.embedding = self.param("embedding", initializer, (rows, c.d_model))
        if not c.tied:
            self.output = self.param("output", initializer, (c.d_model, rows))
        if c.head_bias:
            self.output_bias = self.param("output_bias", nn.initializers.zeros, (rows,))
        self.encoder = [block(cross=False) for _ in range(c.encoder_layers)]
        self.decoder = [block(cross=True) for _ in range(c.decoder_layers)]
        self.encoder_norm, self.decoder_norm, self.drop = norm(), norm(), Dropout(c.dropout)

    def __call__(self, inputs: Inputs) -> Array:
        """Teacher-forced decoder states, hidden_BTD."""
        index_B, tokens, source = inputs
        memory_BSD = self.encode(source, index_B)
        length = tokens.ids_BT.shape[1]
        causal = jnp.tri(length, dtype=bool)[None, None]
        self_bias = mask_bias(causal & same_segment(tokens.segment_BT, tokens.segment_BT))
        cross_bias = mask_bias(same_segment(tokens.segment_BT, source.segment_BT))
        x_BTD = self.drop(self.embed(tokens), index_B)
        for layer, kv in zip(self.decoder, self.cross_kv(memory_BSD), strict=True):
            x_BTD = layer(x_BTD, self_bias, index_B, kv, cross_bias)
        if self.is_initializing():
            self.head()
        return self.decoder_norm(x_BTD)

    def head(self) -> Head:
        """The output layer, as data."""
        c = self.config
        kernel_DV = self.embedding.T if c.tied else self.output
        cut = self.vocab_size if kernel_DV.shape[1] > self.vocab_size else 0
        return Head(kernel_DV, self.output_bias if c.head_bias else None, c.soft_cap, cut)

    def embed(self, tokens: Tokens) -> Array:
        """Scaled embeddings plus positions."""
        place_TD = sinusoids(tokens.ids_BT.shape[1], self.config.d_model)
        return self.embedding[tokens.ids_BT] * self.config.d_model**0.5 + place_TD[tokens.position_BT]

    def encode(self, source: Tokens, index_B: Array) -> Array:
        """Encoder states [B, S, D]."""
        bias = mask_bias(same_segment(source.segment_BT, source.segment_BT))
        x_BSD = self.drop(self.embed(source), index_B)
        for layer in self.encoder:
            x_BSD = layer(x_BSD, bias, index_B)
        return self.encoder_norm(x_BSD)

    def cross_kv(self, memory_BSD: Array) -> tuple[tuple[Array, Array], ...]:
        """Keys and values of every decoder layer from one product; (key, value) pairs, each [B, H, S, D/H]."""
        kernel = jnp.concatenate([layer.cross_attention.kv for layer in self.decoder], axis=1)
        flat = memory_BSD.reshape(-1, memory_BSD.shape[-1]) @ kernel
        parts = jnp.split(flat.reshape(*memory_BSD.shape[:-1], -1), 2 * len(self.decoder), axis=-1)
        heads = [split_heads(part, self.config.heads) for part in parts]
        return tuple(zip(heads[::2], heads[1::2], strict=True))

    def prefill(self, inputs: Inputs, room: int) -> Cache:
        """Encodes the source and makes room for `room` target tokens; the start token is still to be read."""
        source, c = inputs.encoder, self.config
        memory_BSD = self.encode(source, inputs.index_B)
        rows = source.ids_BT.shape[0]
        empty = jnp.zeros((rows, c.heads, room, c.d_model // c.heads), memory_BSD.dtype)
        return Cache(
            slot=jnp.int32(0),
            position_B=jnp.zeros(rows, jnp.int32),
            self_kv=tuple((empty, empty) for _ in self.decoder),
            cross_kv=self.cross_kv(memory_BSD),
            source_BS=source.segment_BT > 0,
        )

    def step(self, cache: Cache, token_B: Array) -> tuple[Array, Cache]:
        """Logits of the next token after `token_B`, which stands at `cache.position_B`."""
        c = self.config
        place_TD = sinusoids(cache.self_kv[0][0].shape[2], c.d_model)
        x_B1D = (self.embedding[token_B] * c.d_model**0.5 + place_TD[cache.position_B])[:, None]
        cross_bias = mask_bias(cache.source_BS)[:, None, None, :]
        self_kv = []
        for layer, kv, cross_kv in zip(self.decoder, cache.self_kv, cache.cross_kv, strict=True):
            x_B1D, kv = layer.step(x_B1D, kv, cache.slot, cross_kv, cross_bias)
            self_kv.append(kv)
        logits_BV = self.head().logits(self.decoder_norm(x_B1D)[:, 0])
        return logits_BV, cache._replace(slot=cache.slot + 1, position_B=cache.position_B + 1, self_kv=tuple(self_kv))
