"""The network of both families: a decoder, which may look at a source, and the pure functions that it gives."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.errors import KdError
from kd_jax.models import axes
from kd_jax.models.attention import KeyValue, AttentionContext, mask_bias, same_segment
from kd_jax.models.base import Cache, Head, Model
from kd_jax.models.layers import Dropout, new_norm, rounded, token_numbers
from kd_jax.models.positions import BUCKETS, relative_buckets, rotary_embedding, sinusoids
from kd_jax.models.stack import Block, apply_layers, stack_layers
from kd_jax.models.transformer import Transformer
from kd_jax.runtime.mesh import gather_params
from kd_jax.types import Array, Inputs, Params, Tokens


class Network(nn.Module):
    """A decoder between an embedding and a head. By itself the decoder-only family; see `source` for the other."""

    config: Transformer
    vocab_size: int

    cross = False  # whether the decoder looks at a source

    def setup(self):
        c = self.config
        rows = c.embedding_rows(self.vocab_size)
        initializer = nn.initializers.normal(c.d_model**-0.5)
        self.embedding = self.param("embedding", initializer, (rows, c.d_model))
        if not c.tied:
            self.output = self.param("output", initializer, (c.d_model, rows))
        if c.head_bias:
            self.output_bias = self.param("output_bias", nn.initializers.zeros, (rows,))
        self.drop = Dropout(c.dropout)
        self.decoder = [Block(c, self.cross, i in c.local) for i in range(c.stacks()["decoder"])]
        self.decoder_norm = self.last_norm()
        self.decoder_table = self.table("decoder")
        self.decoder_enter = self.first_norm()

    def first_norm(self):
        """What follows a stack's embeddings; nothing where no norm does."""
        return new_norm(self.config) if self.config.embedding_norm else lambda x_BTD: x_BTD

    def last_norm(self):
        """What stands behind the last layer of a stack; nothing where every layer ends with a norm."""
        return (lambda x_BTD: x_BTD) if self.config.norm_position == "after" else new_norm(self.config)

    def table(self, stack: str) -> Array | None:
        """What a stack learns about positions: [context, D], or [BUCKETS, H] for all its layers; None for nothing."""
        c = self.config
        if c.positions == "learned":
            return self.param(f"{stack}_positions", nn.initializers.normal(c.d_model**-0.5), (c.context, c.d_model))
        if c.positions == "relative":
            return self.param(f"{stack}_buckets", nn.initializers.normal(c.d_model**-0.5), (BUCKETS, c.heads))
        return None

    def scanned(self, stack: str) -> Params | None:
        """The parameters of all its layers, arrays [layers, ...]; None where they are not scanned over."""
        return self.get_variable("params", stack)

    def __call__(self, inputs: Inputs) -> Array:
        """Teacher-forced decoder states, hidden_BTD."""
        hidden_BTD, _ = self.read(inputs.decoder, *self.source(inputs))
        if self.is_initializing():
            self.head()
        return hidden_BTD

    def source(self, inputs: Inputs) -> tuple[tuple[KeyValue, ...] | KeyValue, Array]:
        """(keys and values of the source for each layer, as `apply_layers`; their segments [B, S]): here there is none."""
        return (), jnp.zeros((inputs.index_B.shape[0], 0), jnp.int32)

    def head(self) -> Head:
        """The output layer, as data."""
        c = self.config
        kernel_DV = self.embedding.T if c.tied else self.output
        cut = self.vocab_size if kernel_DV.shape[1] > self.vocab_size else 0
        return Head(kernel_DV, self.output_bias if c.head_bias else None, c.soft_cap, cut)

    def embed(self, ids_BT: Array, position_BT: Array, table: Array | None, length: int) -> Array:
        """Embeddings, and the positions that are added to them; no position reaches `length`."""
        c = self.config
        x_BTD = self.embedding[ids_BT].astype(jnp.float32)
        if c.embedding_scale:
            x_BTD *= c.d_model**0.5
        if c.positions == "sinusoidal":
            x_BTD += sinusoids(length + c.first_position, c.d_model)[position_BT + c.first_position]
        if c.positions == "timing":
            x_BTD += sinusoids(length + c.first_position, c.d_model, timing=True)[position_BT + c.first_position]
        if c.positions == "learned":
            # Beyond the table only drafts stand that are thrown away; JAX gives them its last row.
            x_BTD += table[position_BT].astype(jnp.float32)
        return x_BTD.astype(jnp.bfloat16 if c.compute == "bfloat16" else self.embedding.dtype)

    def check_length(self, length: int) -> None:
        """Raises KdError where a row has more tokens than the network has learned positions."""
        c = self.config
        if c.positions == "learned" and length > c.context:
            raise KdError(f"model.context: {c.context}; a row has {length} tokens; use a larger one or shorter texts")

    def attention_context(
        self, seen: Array, position_BT: Array, column_T: Array, column_S: Array, table: Array | None, two_sided=False
    ) -> AttentionContext:
        """Who sees whom, bool [B, 1, T, S]; queries and keys stand at these places of their rows."""
        c = self.config
        bias, rotary, local_rotary = mask_bias(seen), None, None
        if c.positions == "relative":
            # An example's tokens stand side by side, so places are as far apart as positions: one table for all rows.
            distance_TS = column_S[None] - column_T[:, None]
            bias += table[relative_buckets(distance_TS, two_sided)].astype(jnp.float32).transpose(2, 0, 1)[None]
        if c.positions == "rotary":
            rotary = rotary_embedding(position_BT, c.head_width, c.rope_theta, c.rope_scaling)
            if c.local:
                local_rotary = rotary_embedding(position_BT, c.head_width, c.local_rope_theta)
        return AttentionContext(bias, rotary, local_rotary)

    def read(
        self, tokens: Tokens, source_kv: tuple[KeyValue, ...] | KeyValue, source_BS: Array
    ) -> tuple[Array, tuple[KeyValue, ...]]:
        """(hidden_BTD, every layer's keys and values) of whole rows."""
        ids_BT, position_BT, segment_BT = tokens
        length, number_BT = ids_BT.shape[1], token_numbers(tokens)
        self.check_length(length)
        x_BTD = self.decoder_enter(self.embed(ids_BT, position_BT, self.decoder_table, length))
        x_BTD = self.drop(x_BTD, number_BT)
        causal = jnp.tri(length, dtype=bool)[None, None]
        seen = causal & same_segment(segment_BT, segment_BT)
        column_T = jnp.arange(length)
        attention = self.attention_context(seen, position_BT, column_T, column_T, self.decoder_table)
        attention = attention._replace(causal=True, cross_bias=mask_bias(same_segment(segment_BT, source_BS)))
        x_BTD, kv = apply_layers(self.decoder, self.scanned("decoder"), x_BTD, number_BT, attention, source_kv)
        return self.finish(x_BTD), kv

    def finish(self, x_BTD: Array) -> Array:
        """What the head reads."""
        x_BTD = self.decoder_norm(x_BTD)
        return x_BTD if self.config.head_scale == 1 else x_BTD * self.config.head_scale

    def prefill(self, inputs: Inputs, room: int) -> Cache:
        """Reads the source and all but the last decoder token, and makes room for `room` tokens."""
        source_kv, source_BS = self.source(inputs)
        prefix = Tokens(*(x_BT[:, :-1] for x_BT in inputs.decoder))
        self.check_length(prefix.ids_BT.shape[1] + room)
        _, self_kv = self.read(prefix, source_kv, source_BS)
        read = Cache(
            slot=jnp.int32(prefix.ids_BT.shape[1]),
            position_B=inputs.decoder.position_BT[:, -1],
            visible_BKS=(prefix.segment_BT > 0)[:, None],
            column_S=jnp.arange(prefix.ids_BT.shape[1]),
            self_kv=self_kv,
            cross_kv=tuple(zip(*source_kv, strict=True)) if self.config.scan_layers else source_kv,
            source_BS=source_BS > 0,
        )
        return read.reserve(room)

    def extend(self, cache: Cache, ids_BT: Array) -> tuple[Array, Cache]:
        """Logits of the next token after each of `ids_BT`: see Model.extend."""
        position_BT, seen_BTS = cache.positions_and_visibility(ids_BT.shape[1])
        column_T = jax.lax.dynamic_slice_in_dim(cache.column_S, cache.slot, ids_BT.shape[1])
        attention = self.attention_context(seen_BTS[:, None], position_BT, column_T, cache.column_S, self.decoder_table)
        attention = attention._replace(cross_bias=mask_bias(cache.source_BS)[:, None, None])
        x_BTD = self.decoder_enter(self.embed(ids_BT, position_BT, self.decoder_table, seen_BTS.shape[2]))
        caches = cache.cross_kv, cache.self_kv, cache.slot
        x_BTD, self_kv = apply_layers(self.decoder, self.scanned("decoder"), x_BTD, None, attention, *caches)
        head = self.head()
        # Apart from the bias: XLA on CPU puts it into the product, and then turns a tied matrix around at every token.
        raw_BTV = jax.lax.optimization_barrier(head.raw_logits(self.finish(x_BTD)))
        logits_BTV = head.finish_logits(raw_BTV, head.bias_V)
        return logits_BTV, cache.append(seen_BTS, self_kv)


def pure_functions(network: Network) -> Model:
    """The network as pure functions of its parameters."""

    def init(key: Array) -> Params:
        one = Tokens(*(jnp.full((1, 1), i, jnp.int32) for i in (1, 0, 1)))
        plain = dataclasses.replace(network.config, compute="float32", remat="none", scan_layers=False)
        return network.clone(config=plain).init(key, Inputs(jnp.ones(1, jnp.int32), one, one))["params"]

    def variables(params: Params) -> dict[str, Params]:
        params = rounded(params, network.config.compute)
        stacks = {key: params[key] for key in axes.STACKS if key in params}  # which are gathered layer by layer
        return {"params": gather_params({key: params[key] for key in params if key not in stacks}, axes.axis_names) | stacks}

    stack = stack_layers if network.config.scan_layers else lambda params: params

    def apply(params: Params, inputs: Inputs, dropout_key: Array | None = None) -> Array:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return network.apply(variables(stack(params)), inputs, rngs=rngs)

    def taps(params: Params, inputs: Inputs, dropout_key: Array | None = None):
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        hidden_BTD, sown = network.apply(variables(stack(params)), inputs, rngs=rngs, mutable=["taps"])
        return hidden_BTD, _by_name(sown["taps"])

    def head(params: Params) -> Head:
        return network.apply(variables(params), method=network.head)

    def prefill(params: Params, inputs: Inputs, room: int) -> Cache:
        return network.apply(variables(stack(params)), inputs, room, method=network.prefill)

    def extend(params: Params, cache: Cache, ids_BT: Array) -> tuple[Array, Cache]:
        return network.apply(variables(params), cache, ids_BT, method=network.extend)

    return Model(init, apply, taps, head, prefill, extend, axes.axis_names, stack)


def _by_name(taps: Mapping[str, Any]) -> dict[str, Array]:
    """What the modules sowed, as "decoder_0.q" or "decoder_norm.out"; a module runs once, so each was sown once."""
    leaves = jax.tree_util.tree_leaves_with_path(taps)
    named = [([key.key for key in path if isinstance(key, jax.tree_util.DictKey)], leaf) for path, leaf in leaves]
    return {".".join(key for key in keys if key != "self_attention"): leaf for keys, leaf in named}
