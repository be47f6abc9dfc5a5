"""A stack of layers: one layer, and a loop or scan over the layers, with or without rematerialisation."""

import collections
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import axes
from kd_jax.models.attention import AttentionContext, CrossAttention, SelfAttention
from kd_jax.models.base import KeyValue
from kd_jax.models.layers import Dropout, FeedForward, new_norm
from kd_jax.models.positions import Rotary
from kd_jax.models.transformer import Transformer
from kd_jax.runtime.mesh import gather_params
from kd_jax.types import Array, Params

# Keys and values of the source: a pair per decoder layer, or in a scan one pair of arrays [layers, ...]; () for none.
SourceKeyValues = Sequence[KeyValue] | KeyValue

# Values of a layer that are saved for the backward pass; all others are computed again.
POLICIES = {
    "layer": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nn.Module):
    """One layer: self-attention, optional cross-attention, feed-forward, each with a norm and a residual sum.

    Attributes:
      config: hyper-parameters of the network.
      cross: whether the layer attends to a source.
      local: whether the layer uses local rotary angles; `apply_layers` selects them.
      rotated: whether the layer's queries and keys are rotated, if positions are rotary; `apply_layers` decides too.
    """

    config: Transformer
    cross: bool
    local: bool = False
    rotated: bool = True

    def setup(self):
        """Create the sub-layers and their norms."""
        c = self.config
        sublayers = ("self", "cross", "ffn") if self.cross else ("self", "ffn")
        self.norm = {sublayer: new_norm(c) for sublayer in sublayers}
        if c.norm_position == "both":
            self.norm_out = {sublayer: new_norm(c) for sublayer in sublayers}
        self.drop = Dropout(c.dropout)
        self.self_attention, self.ffn = SelfAttention(c), FeedForward(c)
        if self.cross:
            self.cross_attention = CrossAttention(c)

    def __call__(
        self,
        x_BTD: Array,
        number_BT: Array | None,
        attention: AttentionContext,
        local: Any,
        source_kv: KeyValue | None = None,
        cached_kv: KeyValue | None = None,
    ) -> tuple[Array, KeyValue]:
        """Return (x_BTD, keys and values of self-attention); `number_BT` are `token_numbers`, None in decoding."""
        out_BTD, kv = self.self_attention(self.pre_norm("self", x_BTD), attention, local, cached_kv)
        x_BTD = self.add_residual("self", x_BTD, out_BTD, number_BT)
        if self.cross:
            assert source_kv is not None and attention.cross_attend is not None, "cross-attention needs a source"
            out_BTD = self.cross_attention(self.pre_norm("cross", x_BTD), source_kv, attention.cross_attend)
            x_BTD = self.add_residual("cross", x_BTD, out_BTD, number_BT)
        x_BTD = self.add_residual("ffn", x_BTD, self.ffn(self.pre_norm("ffn", x_BTD)), number_BT)
        self.sow("taps", "hidden", x_BTD)
        return x_BTD, kv

    def pre_norm(self, sublayer: str, x_BTD: Array) -> Array:
        """Return the input of a sub-layer."""
        return x_BTD if self.config.norm_position in ("after", "output") else self.norm[sublayer](x_BTD)

    def add_residual(self, sublayer: str, x_BTD: Array, out_BTD: Array, number_BT: Array | None) -> Array:
        """Return the residual sum of a sub-layer's input and output, with dropout and the norms behind it."""
        if self.config.norm_position == "both":
            out_BTD = self.norm_out[sublayer](out_BTD)
        if self.config.norm_position == "output":
            out_BTD = self.norm[sublayer](out_BTD)
        x_BTD += self.drop(out_BTD, number_BT)
        return self.norm[sublayer](x_BTD) if self.config.norm_position == "after" else x_BTD


def stack_layers(params: Params) -> Params:
    """Return the parameters with the layers of each stack joined into arrays [layers, ...].

    "decoder_0", "decoder_1", ... become "decoder"; other parameters stay as they are.

    Examples:
      >>> params = stack_layers({"decoder_0": {"bias": jnp.zeros(2)}, "decoder_1": {"bias": jnp.ones(2)}, "output": 3})
      >>> params["output"], params["decoder"]["bias"].tolist()
      (3, [[0.0, 0.0], [1.0, 1.0]])
    """
    layer = re.compile(r"(\w+)_(\d+)")
    layer_keys = {key: match.groups() for key in params if (match := layer.fullmatch(key))}
    depths = collections.Counter(stack for stack, _ in layer_keys.values())
    layers = {stack: [params[f"{stack}_{i}"] for i in range(depth)] for stack, depth in depths.items()}
    return {key: value for key, value in params.items() if key not in layer_keys} | _stack(layers)


def unstack_layers(params: Params) -> Params:
    """Return the inverse of `stack_layers`; unstacked parameters stay as they are."""
    stacks = {key: params[key] for key in axes.STACKS if key in params}
    return {key: value for key, value in params.items() if key not in stacks} | _unstack(stacks) if stacks else params


@jax.jit
def _stack(layers: dict[str, list[Params]]) -> Params:
    return {stack: jax.tree.map(lambda *xs: jnp.stack(xs), *each) for stack, each in layers.items()}


@jax.jit
def _unstack(stacks: Params) -> Params:
    depths = {stack: len(jax.tree.leaves(layers)[0]) for stack, layers in stacks.items()}
    each = ((stack, i) for stack, depth in depths.items() for i in range(depth))
    return {f"{stack}_{i}": jax.tree.map(lambda x, i=i: x[i], stacks[stack]) for stack, i in each}


class LayerInputs(NamedTuple):
    """Inputs that differ from layer to layer of a stack; in a scan, arrays [layers, ...].

    Attributes:
      params: parameters of the layer.
      local, rotated: bool scalars, as of Block; unused if they are known before.
      dropout_key: None for no dropout.
      source_kv: keys and values of the source; None without cross-attention.
      cached_kv: keys and values of the cache; None without a cache.
    """

    params: Params
    local: Array | np.ndarray | None
    rotated: Array | np.ndarray | None
    dropout_key: Array | None
    source_kv: KeyValue | None
    cached_kv: KeyValue | None


# (x_BTD, inputs of the layer) -> (x_BTD, (keys and values of self-attention, taps)).
PureLayer = Callable[[Array, LayerInputs], tuple[Array, tuple[KeyValue, Mapping[str, Array]]]]


def apply_layers(
    layers: Sequence[Block],
    params: Params | None,
    x_BTD: Array,
    number_BT: Array | None,
    attention: AttentionContext,
    source_kv: SourceKeyValues = (),
    self_kv: Sequence[KeyValue] = (),
) -> tuple[Array, tuple[KeyValue, ...]]:
    """Return (x_BTD, keys and values of each layer) after all layers of a stack.

    The layers run in a Python loop, which is faster on CPU, or with `scan_layers` in a scan, which compiles one layer.
    With a cache they run in a loop either way, because stacking the cache would copy it.

    `params` are those of all layers, as `stack_layers` arranges them, or None if each layer has its own. `self_kv` has
    one pair per layer; () without a cache. `number_BT` are `token_numbers`, for dropout; None in decoding.
    """
    c, depth, keys = layers[0].config, len(layers), None
    if layers[0].has_rng("dropout"):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(layers[0].make_rng("dropout"), jnp.arange(depth))
    kinds = [(layer.local, layer.rotated) for layer in layers]
    scan_params = None if self_kv else params

    def pure_layer(kind: tuple[bool, bool] | None) -> PureLayer:
        layer = _pure_layer(layers[0], number_BT, attention, params is not None, kind)
        if c.remat == "none":
            return layer
        # Within a scan the compiler cannot merge rematerialised values with saved ones, so nothing need prevent it.
        return jax.checkpoint(layer, policy=POLICIES[c.remat], prevent_cse=scan_params is None)

    if scan_params is not None:
        stacked_kv = cast(KeyValue, source_kv) if source_kv else None
        local, rotated = map(np.array, zip(*kinds, strict=True))
        inputs = LayerInputs(scan_params, local, None if rotated.all() else rotated, keys, stacked_kv, None)
        x_BTD, outputs_L = jax.lax.scan(pure_layer(None), x_BTD, inputs)
        outputs = [jax.tree.map(lambda x_L, i=i: x_L[i], outputs_L) for i in range(depth)]
    else:
        outputs, by_kind = [], {kind: pure_layer(kind) for kind in set(kinds)}
        layer_kvs = cast(Sequence[KeyValue], source_kv)
        for i, (bound, layer_kv, cached_kv) in enumerate(itertools.zip_longest(layers, layer_kvs, self_kv)):
            if bound.is_initializing():
                bound(x_BTD, number_BT, attention, bound.local, layer_kv)  # creates the parameters
            if params is None:
                layer_params = cast(Params, bound.variables["params"])
            else:
                layer_params = jax.tree.map(lambda x, i=i: x[i], params)
            dropout_key = None if keys is None else keys[i]
            inputs = LayerInputs(layer_params, None, None, dropout_key, layer_kv, cached_kv)
            x_BTD, output = by_kind[kinds[i]](x_BTD, inputs)
            outputs.append(output)
    for bound, (_, taps) in zip(layers, outputs, strict=True):
        for name, tap in taps.items():
            bound.put_variable("taps", name, tap)
    return x_BTD, tuple(kv for kv, _ in outputs)


def _pure_layer(
    block: Block,
    number_BT: Array | None,
    attention: AttentionContext,
    sharded: bool,
    kind: tuple[bool, bool] | None,
) -> PureLayer:
    """Return a layer as a pure function; if its parameters are `sharded` over a mesh, it gathers them itself.

    `kind` is (local, rotated), as of Block; None in a scan, where the layer's inputs tell.
    """
    with_taps, block = block.is_mutable_collection("taps"), Block(block.config, block.cross, parent=None)

    def layer(x_BTD: Array, inputs: LayerInputs) -> tuple[Array, tuple[KeyValue, Mapping[str, Array]]]:
        rotary = attention.rotary
        local, rotated = (inputs.local, inputs.rotated) if kind is None else kind
        if attention.local_rotary is not None:
            if isinstance(local, bool):
                rotary = attention.local_rotary if local else rotary
            else:
                assert local is not None
                rotary = jax.tree.map(functools.partial(jax.lax.select, local), attention.local_rotary, rotary)
        if rotary is not None and rotated is not None and rotated is not True:
            rotary = None if rotated is False else _rotary_if(rotated, rotary)
        (x_BTD, kv), variables = block.apply(
            {"params": gather_params(inputs.params, axes.layer_axis_names) if sharded else inputs.params},
            x_BTD,
            number_BT,
            attention._replace(rotary=rotary),
            local,
            inputs.source_kv,
            inputs.cached_kv,
            rngs={} if inputs.dropout_key is None else {"dropout": inputs.dropout_key},
            mutable=["taps"] if with_taps else [],
        )
        return x_BTD, (kv, variables["taps"] if with_taps else {})

    return layer


def _rotary_if(rotated: Array | np.ndarray, rotary: Rotary) -> Rotary:
    """Return the rotary embedding if `rotated`, a bool scalar, is true, else that of position 0, the identity."""
    cosine, sine = rotary
    return Rotary(
        jax.lax.select(rotated, cosine, jnp.ones_like(cosine)), jax.lax.select(rotated, sine, jnp.zeros_like(sine))
    )
