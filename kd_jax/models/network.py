"""The network of both families: a decoder, optionally with a source, and its pure functions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.errors import KdError
from kd_jax.models import axes
from kd_jax.models.attend import Attend, Scores, Visibility, attention_of, attention_under_masks, relative_bias
from kd_jax.models.attention import AttentionContext
from kd_jax.models.base import Cache, Head, KeyValue, Model
from kd_jax.models.layers import Dropout, cast_matrices, new_norm, token_numbers
from kd_jax.models.positions import BUCKETS, rotary_embedding, sinusoids
from kd_jax.models.rope import Dynamic
from kd_jax.models.stack import Block, SourceKeyValues, apply_layers, stack_layers
from kd_jax.models.transformer import Transformer
from kd_jax.runtime.mesh import gather_params
from kd_jax.runtime.target import is_for_cpu
from kd_jax.types import Array, Inputs, Params, Tokens


class Network(nn.Module):
    """A decoder between an embedding and a head: the decoder-only family. `encode` is overridden for the other one."""

    config: Transformer
    vocab_size: int

    cross = False  # whether the decoder has cross-attention

    def setup(self):
        """Create the parameters and layers; their attribute names are keys of the parameter tree."""
        c = self.config
        rows = c.embedding_rows(self.vocab_size)
        initializer = nn.initializers.normal(c.d_model**-0.5)
        self.embedding = self.param("embedding", initializer, (rows, c.d_model))
        if not c.tied:
            self.output = self.param("output", initializer, (c.d_model, rows))
        if c.head_bias:
            self.output_bias = self.param("output_bias", nn.initializers.zeros, (rows,))
        self.drop = Dropout(c.dropout)
        layers = range(c.stacks()["decoder"])
        self.decoder = [Block(c, self.cross, i in c.local, i not in c.unrotated) for i in layers]
        self.decoder_norm = self.new_final_norm()
        self.decoder_table = self.new_position_table("decoder")
        self.decoder_enter = self.new_embedding_norm()

    def new_embedding_norm(self) -> Callable[[Array], Array]:
        """Return the norm of a stack's embeddings, or the identity."""
        return new_norm(self.config) if self.config.embedding_norm else _identity

    def new_final_norm(self) -> Callable[[Array], Array]:
        """Return the norm after the last layer of a stack, or the identity if every layer ends with a norm."""
        return _identity if self.config.norm_position == "after" else new_norm(self.config)

    def new_position_table(self, stack: str) -> Array | None:
        """Return a stack's parameters of positions: [context, D], [BUCKETS, H], or None."""
        c = self.config
        if c.positions == "learned":
            return self.param(f"{stack}_positions", nn.initializers.normal(c.d_model**-0.5), (c.context, c.d_model))
        if c.positions == "relative":
            return self.param(f"{stack}_buckets", nn.initializers.normal(c.d_model**-0.5), (BUCKETS, c.heads))
        return None

    def stacked_params(self, stack: str) -> Params | None:
        """Return the stacked parameters of all layers, arrays [layers, ...]; None if they are not stacked."""
        return self.get_variable("params", stack)

    def __call__(self, inputs: Inputs) -> Array:
        """Return the teacher-forced decoder states, hidden_BTD."""
        hidden_BTD, _ = self.decode(inputs.decoder, *self.encode(inputs))
        if self.is_initializing():
            self.head()
        return hidden_BTD

    def encode(self, inputs: Inputs) -> tuple[SourceKeyValues, Array]:
        """Return the source's keys and values for each decoder layer, and its segments [B, S]; here there is none."""
        return (), jnp.zeros((inputs.index_B.shape[0], 0), jnp.int32)

    def head(self) -> Head:
        """Return the output layer."""
        c = self.config
        kernel_DV = self.embedding.T if c.tied else self.output
        vocab_size = self.vocab_size if kernel_DV.shape[1] > self.vocab_size else 0
        return Head(kernel_DV, self.output_bias if c.head_bias else None, c.soft_cap, vocab_size)

    def embed(self, ids_BT: Array, position_BT: Array, table: Array | None, length: int) -> Array:
        """Return the embeddings of tokens plus those of their positions, all below `length`."""
        c = self.config
        x_BTD = self.embedding[ids_BT].astype(jnp.float32)
        if c.embedding_scale:
            x_BTD *= c.d_model**0.5
        if c.positions == "sinusoidal":
            x_BTD += sinusoids(length + c.first_position, c.d_model)[position_BT + c.first_position]
        if c.positions == "timing":
            x_BTD += sinusoids(length + c.first_position, c.d_model, timing=True)[position_BT + c.first_position]
        if c.positions == "learned" and table is not None:
            # Only discarded drafts have positions beyond the table; JAX gives them its last row.
            x_BTD += table[position_BT].astype(jnp.float32)
        return x_BTD.astype(jnp.bfloat16 if c.compute == "bfloat16" else self.embedding.dtype)

    def check_length(self, length: int) -> None:
        """Raise KdError if a row has more tokens than the network has positions, learned or with dynamic scaling."""
        c = self.config
        bounded = c.positions == "learned" or isinstance(c.rope_scaling, Dynamic)
        if bounded and length > c.context:
            raise KdError(
                f"model.context: expected at least {length}, the number of tokens of a row, got {c.context}. "
                "Increase it or shorten the texts."
            )

    @property
    def scores(self) -> Scores:
        """How all layers make scores of products."""
        return Scores(self.config.attention_scale, self.config.attention_soft_cap)

    def self_attention(self, segment_BT: Array, table: Array | None, causal: bool) -> Attend:
        """Return the self-attention of whole rows."""
        c = self.config
        visibility = Visibility(segment_BT, segment_BT, causal, table_KH=table if c.positions == "relative" else None)
        window = c.window if causal and c.local else 0
        return attention_of(c.attention, visibility, self.scores, same_tokens=True, window=window, compute=c.compute)

    def cross_attention(self, segment_BT: Array, source_BS: Array) -> Attend:
        """Return the attention of whole rows to their sources."""
        c, visibility = self.config, Visibility(segment_BT, source_BS)
        return attention_of(c.attention, visibility, self.scores, same_tokens=False, compute=c.compute)

    def attention_context(self, attend: Attend, position_BT: Array) -> AttentionContext:
        """Return the context of self-attention."""
        c, rotary, local_rotary = self.config, None, None
        if c.positions == "rotary":
            rotary = rotary_embedding(position_BT, c.rotary_width, c.rope_theta, c.rope_scaling)
            if c.local:
                local_rotary = rotary_embedding(position_BT, c.rotary_width, c.local_rope_theta)
        return AttentionContext(attend, rotary, local_rotary)

    def decode(
        self, tokens: Tokens, source_kv: SourceKeyValues, source_BS: Array
    ) -> tuple[Array, tuple[KeyValue, ...]]:
        """Return (hidden_BTD, keys and values of each layer) of whole rows; `source_BS` has the source's segments."""
        ids_BT, position_BT, segment_BT = tokens
        length, number_BT = ids_BT.shape[1], token_numbers(tokens)
        self.check_length(length)
        x_BTD = self.decoder_enter(self.embed(ids_BT, position_BT, self.decoder_table, length))
        x_BTD = self.drop(x_BTD, number_BT)
        attend = self.self_attention(segment_BT, self.decoder_table, causal=True)
        attention = self.attention_context(attend, position_BT)
        if self.cross:
            attention = attention._replace(cross_attend=self.cross_attention(segment_BT, source_BS))
        params = self.stacked_params("decoder")
        x_BTD, kv = apply_layers(self.decoder, params, x_BTD, number_BT, attention, source_kv)
        return self.final_hidden(x_BTD), kv

    def final_hidden(self, x_BTD: Array) -> Array:
        """Return the input of the head: the last layer's output, normalised and scaled."""
        x_BTD = self.decoder_norm(x_BTD)
        return x_BTD if self.config.head_scale == 1 else x_BTD * self.config.head_scale

    def prefill(self, inputs: Inputs, room: int) -> Cache:
        """Return the cache after the source and all decoder tokens but the last; see Model.prefill."""
        source_kv, source_BS = self.encode(inputs)
        prefix = Tokens(*(x_BT[:, :-1] for x_BT in inputs.decoder))
        self.check_length(prefix.ids_BT.shape[1] + room)
        _, self_kv = self.decode(prefix, source_kv, source_BS)
        cache = Cache(
            slot=jnp.int32(prefix.ids_BT.shape[1]),
            position_B=inputs.decoder.position_BT[:, -1],
            visible_BKS=(prefix.segment_BT > 0)[:, None],
            column_S=jnp.arange(prefix.ids_BT.shape[1]),
            self_kv=self_kv,
            cross_kv=cast(
                tuple[KeyValue, ...],
                tuple(zip(*source_kv, strict=True)) if self.config.scan_layers else source_kv,
            ),
            source_BS=source_BS > 0,
        )
        return cache.reserve(room)

    def extend(self, cache: Cache, ids_BT: Array) -> tuple[Array, Cache]:
        """Return the logits after each of `ids_BT`, and the cache; see Model.extend."""
        position_BT, visible_BTS = cache.positions_and_visibility(ids_BT.shape[1])
        column_T = jax.lax.dynamic_slice_in_dim(cache.column_S, cache.slot, ids_BT.shape[1])
        distance_TS = cache.column_S[None] - column_T[:, None]
        masks, relative, c = [visible_BTS[:, None]], None, self.config
        if c.window and c.local:
            masks.append(masks[0] & (distance_TS > -c.window)[None, None])
        if c.positions == "relative" and self.decoder_table is not None:
            relative = relative_bias(self.decoder_table, distance_TS, two_sided=False)
        attend = attention_under_masks(masks, relative, self.scores)
        cross_attend = attention_under_masks([cache.source_BS[:, None, None]], None, self.scores)
        attention = self.attention_context(attend, position_BT)
        attention = attention._replace(cross_attend=cross_attend, slot=cache.slot)
        x_BTD = self.decoder_enter(self.embed(ids_BT, position_BT, self.decoder_table, visible_BTS.shape[2]))
        x_BTD, self_kv = apply_layers(
            self.decoder,
            self.stacked_params("decoder"),
            x_BTD,
            None,
            attention,
            source_kv=cache.cross_kv,
            self_kv=cache.self_kv,
        )
        head = self.head()
        raw_BTV = isolate_product(head.raw_logits(self.final_hidden(x_BTD)))
        return head.finish_logits(raw_BTV, head.bias_V), cache.append(visible_BTS, self_kv)


def isolate_product(raw_BTV: Array) -> Array:
    """Return the product unchanged; on CPU as a value that the compiler does not fuse with later operations."""
    # XLA on CPU fuses the head's bias into the product, and then transposes a tied embedding at every token.
    return jax.lax.optimization_barrier(raw_BTV) if is_for_cpu() else raw_BTV


def _identity(x_BTD: Array) -> Array:
    return x_BTD


def pure_functions(network: Network) -> Model:
    """Return the network as pure functions of its parameters."""

    def init(key: Array) -> Params:
        one_token = Tokens(*(jnp.full((1, 1), i, jnp.int32) for i in (1, 0, 1)))
        plain = dataclasses.replace(network.config, compute="float32", remat="none", scan_layers=False)
        collections: Any = network.clone(config=plain).init(key, Inputs(jnp.ones(1, jnp.int32), one_token, one_token))
        return collections["params"]

    def variables(params: Params) -> dict[str, Params]:
        params = cast_matrices(params, network.config.compute)
        stacks = {key: params[key] for key in axes.STACKS if key in params}  # gathered layer by layer
        others = {key: params[key] for key in params if key not in stacks}
        return {"params": gather_params(others, axes.axis_names) | stacks}

    call: Callable[..., Any] = network.apply
    stack = stack_layers if network.config.scan_layers else lambda params: params

    def apply(params: Params, inputs: Inputs, dropout_key: Array | None = None) -> Array:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return call(variables(stack(params)), inputs, rngs=rngs)

    def taps(params: Params, inputs: Inputs, dropout_key: Array | None = None) -> tuple[Array, Mapping[str, Array]]:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        hidden_BTD, collections = call(variables(stack(params)), inputs, rngs=rngs, mutable=["taps"])
        return hidden_BTD, _flatten_taps(collections["taps"])

    def head(params: Params) -> Head:
        return call(variables(params), method=network.head)

    def prefill(params: Params, inputs: Inputs, room: int) -> Cache:
        return call(variables(stack(params)), inputs, room, method=network.prefill)

    def extend(params: Params, cache: Cache, ids_BT: Array) -> tuple[Array, Cache]:
        return call(variables(params), cache, ids_BT, method=network.extend)

    return Model(
        init=init,
        apply=apply,
        taps=taps,
        head=head,
        prefill=prefill,
        extend=extend,
        axes=axes.axis_names,
        stack=stack,
    )


def _flatten_taps(taps: Mapping[str, Any]) -> dict[str, Array]:
    """Return the sown values by name, such as "decoder_0.q"; each module runs once, so each tap has one value."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(taps):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        named[".".join(key for key in keys if key != "self_attention")] = leaf
    return named
