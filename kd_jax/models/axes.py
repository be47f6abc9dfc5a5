"""Names of the axes of every parameter, for initialising narrower students and for sharding over a mesh."""

import re
from typing import Any

import jax

from kd_jax.types import Params

# Pattern of a parameter's name -> its axes. q: queries, head by head; kv: keys, then values; qkv: all three;
# inner: neurons, twice if they are gated; width: width of one head, or of all with `qk_norm_joint`.
AXES = {
    r"embedding": ("token", "model"),
    r"output": ("model", "token"),
    r"output_bias": ("token",),
    r"\w+_positions": ("position", "model"),
    r"\w+_buckets": ("bucket", "head"),
    r"\w+coder_(norm|enter)\.(scale|bias)": ("model",),
    r"\w+\.norm_\w+\.(scale|bias)": ("model",),
    r"\w+\.self_attention\.qkv\.kernel": ("model", "qkv"),
    r"\w+\.self_attention\.qkv\.bias": ("qkv",),
    r"\w+\.cross_attention\.q\.kernel": ("model", "q"),
    r"\w+\.cross_attention\.q\.bias": ("q",),
    r"\w+\.cross_attention\.kv": ("model", "kv"),
    r"\w+\.cross_attention\.kv_bias": ("kv",),
    r"\w+\.\w+_attention\.[qk]_norm\.scale": ("width",),
    r"\w+\.\w+_attention\.out\.kernel": ("q", "model"),
    r"\w+\.ffn\.in\.kernel": ("model", "inner"),
    r"\w+\.ffn\.in\.bias": ("inner",),
    r"\w+\.ffn\.out\.kernel": ("neuron", "model"),
    r"\w+\.\w+\.out\.bias": ("model",),
}

STACKS = ("encoder", "decoder")  # keys of stacked layers (kd_jax.models.stack.stack_layers)


def parameter_axes(name: str) -> tuple[str, ...]:
    """Return the names of a parameter's axes, for a path such as "decoder_3.ffn.out.kernel"."""
    (axes,) = (axes for pattern, axes in AXES.items() if re.fullmatch(pattern, name))
    return axes


def axis_names(params: Params) -> dict[str, Any]:
    """Return the tree of parameters with each parameter replaced by the names of its axes.

    The names are joined by spaces; a stacked parameter (kd_jax.models.stack) has a first axis "layer".

    Examples:
      >>> import numpy as np
      >>> axis_names({"embedding": np.ones((5, 2)), "decoder_norm": {"scale": np.ones(2)}})
      {'decoder_norm': {'scale': 'model'}, 'embedding': 'token model'}
    """

    def names(path: tuple[Any, ...], _: Any) -> str:
        keys = [key.key for key in path]
        layer = ("layer",) if keys[0] in STACKS else ()
        return " ".join((*layer, *parameter_axes(".".join(keys))))

    return jax.tree_util.tree_map_with_path(names, params)


def layer_axis_names(params: Params) -> dict[str, Any]:
    """Return `axis_names` of one layer's parameters."""
    return axis_names({"decoder_0": params})["decoder_0"]
