"""Decoder-only Transformer: one stack reads the prompt and continues it."""

import dataclasses
from typing import ClassVar

from kd_jax.batches.layouts import DecoderOnlyLayout
from kd_jax.models.base import Family, Model
from kd_jax.models.network import Network, pure_functions
from kd_jax.models.transformer import Activation, Norm, Positions, Transformer


@dataclasses.dataclass(frozen=True)
class DecoderOnly(Transformer):
    """Hyper-parameters of a decoder-only Transformer; the defaults are Llama's shape (arXiv 2302.13971), tied.

    Attributes:
      layers: number of layers. `Transformer` documents the other fields.

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

    depth_fields: ClassVar[tuple[str, ...]] = ("layers",)

    @property
    def family(self) -> Family:
        """The family of networks."""
        return "decoder_only"

    @property
    def layout(self) -> type[DecoderOnlyLayout]:
        """The class of the layout."""
        return DecoderOnlyLayout

    def stacks(self) -> dict[str, int]:
        """Return the number of layers of the decoder."""
        return {"decoder": self.layers}

    def build(self, vocab_size: int) -> Model:
        """Return the network as pure functions."""
        self.check()
        return pure_functions(Network(self, vocab_size))
