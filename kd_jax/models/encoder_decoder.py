"""Encoder-decoder Transformer: one stack reads the source, the other looks at it and writes."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from kd_jax.batches.layouts import EncoderDecoderLayout
from kd_jax.models import axes
from kd_jax.models.attention import KeyValue, cross_kv, same_segment, scanned_cross_kv
from kd_jax.models.base import Model
from kd_jax.models.layers import token_numbers
from kd_jax.models.network import Network, pure_functions
from kd_jax.models.stack import Block, apply_layers
from kd_jax.models.transformer import Activation, Norm, Positions, Transformer
from kd_jax.runtime.mesh import gather_params
from kd_jax.types import Array, Inputs


@dataclasses.dataclass(frozen=True)
class EncoderDecoder(Transformer):
    """Hyper-parameters; those that are not given make the shape of Pegasus (arXiv 1912.08777), without its biases.

    Attributes:
      encoder_layers, decoder_layers: depth. The others are Transformer's.

    Examples:
      >>> import jax
      >>> student = EncoderDecoder(encoder_layers=2, decoder_layers=1, d_model=8, heads=2, d_ff=16, vocab_multiple=8)
      >>> params = jax.eval_shape(student.build(vocab_size=10).init, jax.random.key(0))
      >>> params["embedding"].shape, student.stacks()
      ((16, 8), {'encoder': 2, 'decoder': 1})
    """

    encoder_layers: int = 3
    decoder_layers: int = 3
    _: dataclasses.KW_ONLY
    norm: Norm = "layer"
    norm_epsilon: float = 1e-5
    positions: Positions = "sinusoidal"
    activation: Activation = "relu"
    embedding_scale: bool = True

    family: ClassVar[str] = "encoder_decoder"
    depth_fields: ClassVar[tuple[str, ...]] = ("encoder_layers", "decoder_layers")
    layout: ClassVar[type[EncoderDecoderLayout]] = EncoderDecoderLayout

    def stacks(self) -> dict[str, int]:
        """Stack -> number of layers."""
        return {"encoder": self.encoder_layers, "decoder": self.decoder_layers}

    def build(self, vocab_size: int) -> Model:
        """The network as pure functions; raises KdError as `check`."""
        self.check()
        return pure_functions(EncoderDecoderNetwork(self, vocab_size))


class EncoderDecoderNetwork(Network):
    """The decoder looks at an encoder's states; both share the embedding."""

    cross = True

    def setup(self):
        super().setup()
        self.encoder = [Block(self.config, cross=False) for _ in range(self.config.stacks()["encoder"])]
        self.encoder_norm = self.last_norm()
        self.encoder_table = self.table("encoder")
        self.encoder_enter = self.first_norm()

    def source(self, inputs: Inputs) -> tuple[tuple[KeyValue, ...] | KeyValue, Array]:
        """(keys and values of the encoder's states for each decoder layer, as `apply_layers`; their segments [B, S])."""
        ids_BS, position_BS, segment_BS = inputs.encoder
        length, number_BS = ids_BS.shape[1], token_numbers(inputs.encoder)
        self.check_length(length)
        seen = same_segment(segment_BS, segment_BS)
        column_S = jnp.arange(length)
        attention = self.attention_context(seen, position_BS, column_S, column_S, self.encoder_table, two_sided=True)
        x_BSD = self.encoder_enter(self.embed(ids_BS, position_BS, self.encoder_table, length))
        x_BSD = self.drop(x_BSD, number_BS)
        x_BSD, _ = apply_layers(self.encoder, self.scanned("encoder"), x_BSD, number_BS, attention)
        memory_BSD = self.encoder_norm(x_BSD)
        if params := self.scanned("decoder"):
            cut = {"decoder": {"cross_attention": params["cross_attention"]}}
            whole = gather_params(cut, axes.axis_names)["decoder"]["cross_attention"]
            return scanned_cross_kv(self.config, whole, memory_BSD), segment_BS
        return cross_kv([layer.cross_attention for layer in self.decoder], memory_BSD), segment_BS
