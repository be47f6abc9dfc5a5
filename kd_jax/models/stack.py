"""A stack of layers: what one layer is, and how one follows the other: in a loop or a scan, kept or computed again."""

import collections
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import axes
from kd_jax.models.attention import CrossAttention, KeyValue, SelfAttention, AttentionContext
from kd_jax.models.layers import Dropout, FeedForward, new_norm
from kd_jax.models.transformer import Transformer
from kd_jax.runtime.mesh import gather_params
from kd_jax.types import Array, Params

# What of a layer is kept for the backward pass; all else is computed again.
POLICIES = {
    "layer": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nn.Module):
    """Self-attention, cross-attention where `cross`, feed-forward: sub-layers with residual sums and norms.

    Attributes:
      config: of the network.
      cross: whether it looks at a source.
      local: whether its rotary angles are the local ones; `apply_layers` hands them to it.
    """

    config: Transformer
    cross: bool
    local: bool = False

    def setup(self):
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
        source: KeyValue | None = None,
        earlier: KeyValue | None = None,
        slot: Array | None = None,
    ) -> tuple[Array, KeyValue]:
        """(x_BTD, the self-attention's keys and values); see SelfAttention."""
        seen_BTD, kv = self.self_attention(self.pre_norm("self", x_BTD), attention, earlier, slot)
        x_BTD = self.add_residual("self", x_BTD, seen_BTD, number_BT)
        if self.cross:
            seen_BTD = self.cross_attention(self.pre_norm("cross", x_BTD), source, attention.cross_bias)
            x_BTD = self.add_residual("cross", x_BTD, seen_BTD, number_BT)
        x_BTD = self.add_residual("ffn", x_BTD, self.ffn(self.pre_norm("ffn", x_BTD)), number_BT)
        self.sow("taps", "hidden", x_BTD)
        return x_BTD, kv

    def pre_norm(self, sublayer: str, x_BTD: Array) -> Array:
        """What a sub-layer reads."""
        return x_BTD if self.config.norm_position == "after" else self.norm[sublayer](x_BTD)

    def add_residual(self, sublayer: str, x_BTD: Array, out_BTD: Array, number_BT: Array | None) -> Array:
        """The residual sum."""
        if self.config.norm_position == "both":
            out_BTD = self.norm_out[sublayer](out_BTD)
        x_BTD += self.drop(out_BTD, number_BT)
        return self.norm[sublayer](x_BTD) if self.config.norm_position == "after" else x_BTD


def stack_layers(params: Params) -> Params:
    """The layers of each stack as one: "decoder_0", "decoder_1", ... as "decoder", of arrays [layers, ...].

    Examples:
      >>> params = stack_layers({"decoder_0": {"bias": jnp.zeros(2)}, "decoder_1": {"bias": jnp.ones(2)}, "output": 3})
      >>> params["output"], params["decoder"]["bias"].tolist()
      (3, [[0.0, 0.0], [1.0, 1.0]])
    """
    layer = re.compile(r"(\w+)_(\d+)")
    numbers = {key: match.groups() for key in params if (match := layer.fullmatch(key))}
    depths = collections.Counter(stack for stack, _ in numbers.values())
    layers = {stack: [params[f"{stack}_{i}"] for i in range(depth)] for stack, depth in depths.items()}
    return {key: value for key, value in params.items() if key not in numbers} | _together(layers)


def unstack_layers(params: Params) -> Params:
    """The inverse of `stack_layers`; what is not stacked stays as it is.

    Examples:
      >>> unstack_layers({"decoder": {"bias": jnp.arange(2.0)}})
      {'decoder_0': {'bias': Array(0., dtype=float32)}, 'decoder_1': {'bias': Array(1., dtype=float32)}}
    """
    stacks = {key: params[key] for key in axes.STACKS if key in params}
    return {key: value for key, value in params.items() if key not in stacks} | _apart(stacks) if stacks else params


@jax.jit
def _together(layers: dict[str, list[Params]]) -> Params:
    return {stack: jax.tree.map(lambda *xs: jnp.stack(xs), *each) for stack, each in layers.items()}


@jax.jit
def _apart(stacks: Params) -> Params:
    depths = {stack: len(jax.tree.leaves(layers)[0]) for stack, layers in stacks.items()}
    each = ((stack, i) for stack, depth in depths.items() for i in range(depth))
    return {f"{stack}_{i}": jax.tree.map(lambda x, i=i: x[i], stacks[stack]) for stack, i in each}


class LayerInputs(NamedTuple):
    """What a layer does not share with the others of its stack.

    Attributes:
      params: of the layer.
      local: bool scalar, as Block's.
      key: of its dropout; None for none.
      source: keys and values of the source; None where it looks at none.
      earlier: keys and values of earlier tokens; None where there are none.
    """

    params: Params
    local: Array
    key: Array | None
    source: KeyValue | None
    earlier: KeyValue | None


def apply_layers(
    layers: Sequence[Block],
    params: Params | None,
    x_BTD: Array,
    number_BT: Array | None,
    attention: AttentionContext,
    source_kv: Sequence[KeyValue] | KeyValue = (),
    self_kv: Sequence[KeyValue] = (),
    slot: Array | None = None,
) -> tuple[Array, tuple[KeyValue, ...]]:
    """(x_BTD, every layer's keys and values).

    A plain loop, which is faster on CPU, or with `scan_layers` a scan, which compiles one layer. A cache is read in a
    loop either way: to stack it would be to copy it.

    Args:
      layers: of the stack.
      params: of all layers, as `stack_layers`, to scan over; None where each has its own.
      x_BTD, number_BT, attention, slot: as Block's.
      source_kv: for each layer the source's keys and values, in a scan side by side, [layers, ...]; () for none.
      self_kv: for each layer those of earlier tokens; () for none.
    """
    c, depth, keys = layers[0].config, len(layers), None
    if layers[0].has_rng("dropout"):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(layers[0].make_rng("dropout"), jnp.arange(depth))
    local = np.array([layer.local for layer in layers])
    layer, scanned = _pure(layers[0], number_BT, attention, slot, bool(params)), params and not self_kv
    if c.remat != "none":
        # Within a scan nothing could be merged with what is computed again.
        layer = jax.checkpoint(layer, policy=POLICIES[c.remat], prevent_cse=not scanned)
    if scanned:
        x_BTD, left_L = jax.lax.scan(layer, x_BTD, LayerInputs(params, local, keys, source_kv or None, None))
        left = [jax.tree.map(lambda x_L, i=i: x_L[i], left_L) for i in range(depth)]
    else:
        left = []
        for i, (bound, source, earlier) in enumerate(itertools.zip_longest(layers, source_kv, self_kv)):
            if bound.is_initializing():
                bound(x_BTD, number_BT, attention, source)  # which makes its parameters
            own = jax.tree.map(lambda x, i=i: x[i], params) if params else bound.variables["params"]
            x_BTD, of_layer = layer(x_BTD, LayerInputs(own, local[i], keys if keys is None else keys[i], source, earlier))
            left.append(of_layer)
    for bound, (_, sown) in zip(layers, left, strict=True):
        for name, tap in sown.items():
            bound.put_variable("taps", name, tap)
    return x_BTD, tuple(kv for kv, _ in left)


def _pure(
    block: Block, number_BT: Array | None, attention: AttentionContext, slot: Array | None, cut: bool
) -> Callable[[Array, LayerInputs], tuple[Array, tuple[KeyValue, dict[str, Any]]]]:
    """(x_BTD, what is the layer's own) -> (x_BTD, (its keys and values, its taps where they are asked for)).

    Where its parameters are still `cut` over a mesh, they are gathered layer by layer.
    """
    tapped, block = block.is_mutable_collection("taps"), Block(block.config, block.cross, parent=None)

    def layer(x_BTD, own):
        rotary = attention.rotary
        if attention.local_rotary is not None:
            rotary = jax.tree.map(functools.partial(jax.lax.select, own.local), attention.local_rotary, rotary)
        given = x_BTD, number_BT, attention._replace(rotary=rotary), own.source, own.earlier, slot
        rngs = {} if own.key is None else {"dropout": own.key}
        params = gather_params(own.params, axes.layer_axis_names) if cut else own.params
        (x_BTD, kv), sown = block.apply({"params": params}, *given, rngs=rngs, mutable=["taps"] if tapped else [])
        return x_BTD, (kv, sown["taps"] if tapped else {})

    return layer
