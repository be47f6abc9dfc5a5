"""int8 weights: matrices as 8-bit integers with one scale per output channel, quantised through qwix.

Only weights are quantised. Products run in the dtype of the float parameters, after the compiled program has
dequantised the matrices. (On CPU, int8 activations decoded more slowly, with three times the KL divergence.)
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.batches.layouts import Layout
from kd_jax.errors import KdError
from kd_jax.models.base import Architecture, Family, Model
from kd_jax.types import Array, Params

# A matrix's name -> axis of its output channels. Those of the embedding, tied or not, are the tokens.
CHANNEL_AXES = {"kernel": 1, "kv": 1, "output": 1, "embedding": 0}


@dataclasses.dataclass(frozen=True)
class Int8:
    """An `Architecture` whose model takes int8 parameters, as `quantize` returns them.

    Attributes:
      architecture: the network with float parameters; all members but `build` are delegated to it.
    """

    architecture: Architecture

    @property
    def family(self) -> Family:
        """The family of networks."""
        return self.architecture.family

    @property
    def dropout(self) -> float:
        """The dropout rate in training."""
        return self.architecture.dropout

    @property
    def d_model(self) -> int:
        """The width of the hidden states."""
        return self.architecture.d_model

    @property
    def context(self) -> int:
        """The maximum number of tokens of a text; 0 for no bound."""
        return self.architecture.context

    @property
    def layout(self) -> type[Layout]:
        """The class of the layout."""
        return self.architecture.layout

    def check(self) -> None:
        """Check the float network, and that qwix is installed."""
        import_qwix()
        self.architecture.check()

    def stacks(self) -> Mapping[str, int]:
        """Return the number of layers of each stack."""
        return self.architecture.stacks()

    def widths(self) -> Mapping[str, int]:
        """Return the widths of a layer's taps."""
        return self.architecture.widths()

    def build(self, vocab_size: int) -> Model:
        """Return the network's pure functions for int8 parameters."""
        model = self.architecture.build(vocab_size)
        return Model(
            init=lambda key: quantize(model.init(key)),
            apply=_dequantized(model.apply),
            taps=_dequantized(model.taps),
            head=_dequantized(model.head),
            prefill=_dequantized(model.prefill),
            extend=_dequantized(model.extend),
        )


def quantize(params: Params) -> Params:
    r"""Return the parameters with each matrix of CHANNEL_AXES in int8.

    .. math:: s_c = \max_i |w_{ic}| / 127.5, \quad q_{ic} = round(w_{ic} / s_c), \quad
        |s_c q_{ic} - w_{ic}| \le s_c / 2

    Norms, biases and positions stay as they are.

    Returns:
      The tree with a `qwix.QArray` for each matrix: `qvalue`, int8 in the matrix's shape, and `scale`, in its dtype, of
      size 1 along the axis that a product sums over.
    """
    qwix = import_qwix()

    def quantize_matrix(path: tuple[Any, ...], x: Array) -> Any:
        name = path[-1].key
        if name not in CHANNEL_AXES:
            return x
        return qwix.quantize(jnp.asarray(x), jnp.int8, channelwise_axes=(CHANNEL_AXES[name],))

    return jax.tree_util.tree_map_with_path(quantize_matrix, params)


def dequantize(params: Params) -> Params:
    """Return s q for each int8 matrix, in the scale's dtype: the inverse of `quantize`, up to rounding."""
    qwix = import_qwix()

    def is_int8(x: Any) -> bool:
        return isinstance(x, qwix.QArray)

    return jax.tree.map(lambda x: qwix.dequantize(x) if is_int8(x) else x, params, is_leaf=is_int8)


def import_qwix() -> ModuleType:
    """Return the module qwix; it is imported on first use because that takes half a second."""
    try:
        import qwix
    except ImportError as error:
        raise KdError(
            "int8: expected the package qwix, which is not installed. Run: pip install 'kd_jax[int8]'"
        ) from error
    return qwix


def _dequantized(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a model for int8 parameters."""
    return lambda params, *args, **kwargs: function(dequantize(params), *args, **kwargs)
