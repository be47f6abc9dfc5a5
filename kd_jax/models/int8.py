"""int8 weights: every matrix as 8-bit integers with a scale for each of its output channels, quantised through qwix.

Weights alone: products run in the parameters' own type, on matrices that the compiled program makes from the integers.
On the CPU at hand, activations in int8 too were slower where texts are written, and three times as far from the float
network (KL).
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.errors import KdError
from kd_jax.models.base import Architecture, Model
from kd_jax.types import Array, Params

# A matrix's name -> axis of its output channels. Of the embedding, tied or not, these are the tokens.
CHANNELS = {"kernel": 1, "kv": 1, "output": 1, "embedding": 0}


@dataclasses.dataclass(frozen=True)
class Int8:
    """An Architecture whose model reads int8 parameters, as `quantize` makes them.

    Attributes:
      of: the network with float parameters; all but `build` is its own.

    Examples:
      >>> from kd_jax import DecoderOnly
      >>> model = Int8(DecoderOnly(layers=1, d_model=8, heads=2, d_ff=16)).build(vocab_size=10)
      >>> params = model.init(jax.random.key(0))
      >>> params["embedding"].qvalue.dtype, params["embedding"].scale.shape, params["decoder_norm"]["scale"].dtype
      (dtype('int8'), (10, 1), dtype('float32'))
      >>> model.head(params).kernel_DV.dtype
      dtype('float32')
    """

    of: Architecture

    @property
    def family(self) -> str:
        return self.of.family

    @property
    def dropout(self) -> float:
        return self.of.dropout

    @property
    def d_model(self) -> int:
        return self.of.d_model

    @property
    def context(self) -> int:
        return self.of.context

    @property
    def layout(self) -> type[Any]:
        return self.of.layout

    def check(self) -> None:
        """As the float network's; raises KdError where qwix is not installed too."""
        qwix()
        self.of.check()

    def stacks(self) -> Mapping[str, int]:
        return self.of.stacks()

    def widths(self) -> Mapping[str, int]:
        return self.of.widths()

    def build(self, vocab_size: int) -> Model:
        """The same pure functions, of int8 parameters."""
        model = self.of.build(vocab_size)
        return Model(
            init=lambda key: quantize(model.init(key)),
            apply=_of_int8(model.apply),
            taps=_of_int8(model.taps),
            head=_of_int8(model.head),
            prefill=_of_int8(model.prefill),
            extend=_of_int8(model.extend),
        )


def quantize(params: Params) -> Params:
    """The parameters with each matrix of CHANNELS in int8.

    .. math:: s_c = \\max_i |w_{ic}| / 127.5, \\quad q_{ic} = round(w_{ic} / s_c), \\quad
        |s_c q_{ic} - w_{ic}| \\le s_c / 2

    Norms, biases and positions stay as they are.

    Args:
      params: a network's, float.

    Returns:
      The tree with a `qwix.QArray` for each matrix: qvalue int8 in its shape, scale in its type, of size 1 along the
      axis that is summed over.

    Raises:
      KdError: if qwix is not installed.

    Examples:
      >>> kernel = quantize({"kernel": jnp.array([[1.0, 0.0], [-0.5, 255.0]])})["kernel"]
      >>> kernel.qvalue.tolist()  # each column has a scale of its own
      [[127, 0], [-64, 127]]
      >>> (127.5 * kernel.scale).tolist()
      [[1.0, 255.0]]
    """
    library = qwix()

    def one(path: tuple[Any, ...], x: Array) -> Any:
        name = path[-1].key
        if name not in CHANNELS:
            return x
        return library.quantize(jnp.asarray(x), jnp.int8, channelwise_axes=(CHANNELS[name],))

    return jax.tree_util.tree_map_with_path(one, params)


def dequantize(params: Params) -> Params:
    """The inverse of `quantize`, but for the rounding: s q for each matrix, in the scales' type."""
    library = qwix()
    is_int8 = lambda x: isinstance(x, library.QArray)  # noqa: E731
    return jax.tree.map(lambda x: library.dequantize(x) if is_int8(x) else x, params, is_leaf=is_int8)


def qwix() -> ModuleType:
    """The library, imported when it is first wanted: half a second that no other network need wait.

    Raises:
      KdError: if it is not installed.
    """
    try:
        import qwix
    except ImportError as error:
        raise KdError("int8: wants qwix, which is not installed; pip install 'kd_jax[int8]'") from error
    return qwix


def _of_int8(function: Callable[..., Any]) -> Callable[..., Any]:
    """A model's function, of int8 parameters."""
    return lambda params, *rest: function(dequantize(params), *rest)
