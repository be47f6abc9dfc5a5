"""Decoder-only Transformer: one stack that reads the prompt and goes on with it."""

import dataclasses
from typing import ClassVar

from kd_jax.batches.layouts import DecoderOnlyLayout
from kd_jax.models.base import Model
from kd_jax.models.network import Network, pure_functions
from kd_jax.models.transformer import Activation, Norm, Positions, Transformer


@dataclasses.dataclass(frozen=True)
class DecoderOnly(Transformer):
    """Hyper-parameters; those that are not given make the shape of Llama (arXiv 2302.13971), tied.

    Attributes:
      layers: depth. The others are Transformer's.

    Examples:
      >>> import jax
      >>> student = DecoderOnly(layers=2, d_model=8, heads=4, kv_heads=2, d_ff=16)
      >>> params = jax.eval_shape(student.build(vocab_size=10).init, jax.random.key(0))
      >>> params["decoder_0"]["self_attention"]["qkv"]["kernel"].shape, student.stacks()  # 4 + 2 + 2 heads
      ((8, 16), {'decoder': 2})
    """

    layers: int = 6
    _: dataclasses.KW_ONLY
    norm: Norm = "rms"
    norm_epsilon: float = 1e-6
    positions: Positions = "rotary"
    activation: Activation = "swiglu"
    embedding_scale: bool = False

    family: ClassVar[str] = "decoder_only"
    depth_fields: ClassVar[tuple[str, ...]] = ("layers",)
    layout: ClassVar[type[DecoderOnlyLayout]] = DecoderOnlyLayout

    def stacks(self) -> dict[str, int]:
        """Stack -> number of layers."""
        return {"decoder": self.layers}

    def build(self, vocab_size: int) -> Model:
        """The network as pure functions; raises KdError as `check`."""
        self.check()
        return pure_functions(Network(self, vocab_size))
