"""Encoder-decoder Transformer: the encoder reads the source, the decoder attends to it and writes."""

import dataclasses
from typing import ClassVar

from kd_jax.batches.layouts import EncoderDecoderLayout
from kd_jax.models import axes
from kd_jax.models.attention import cross_kv, stacked_cross_kv
from kd_jax.models.base import Family, Model
from kd_jax.models.layers import token_numbers
from kd_jax.models.network import Network, pure_functions
from kd_jax.models.stack import Block, SourceKeyValues, apply_layers
from kd_jax.models.transformer import Activation, Norm, Positions, Transformer
from kd_jax.runtime.mesh import gather_params
from kd_jax.types import Array, Inputs


@dataclasses.dataclass(frozen=True)
class EncoderDecoder(Transformer):
    """Hyper-parameters of an encoder-decoder; the defaults are Pegasus's shape (arXiv 1912.08777) without biases.

    Attributes:
      encoder_layers, decoder_layers: number of layers. `Transformer` documents the other fields.

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

    depth_fields: ClassVar[tuple[str, ...]] = ("encoder_layers", "decoder_layers")

    @property
    def family(self) -> Family:
        """The family of networks."""
        return "encoder_decoder"

    @property
    def layout(self) -> type[EncoderDecoderLayout]:
        """The class of the layout."""
        return EncoderDecoderLayout

    def stacks(self) -> dict[str, int]:
        """Return the number of layers of encoder and decoder."""
        return {"encoder": self.encoder_layers, "decoder": self.decoder_layers}

    def build(self, vocab_size: int) -> Model:
        """Return the network as pure functions."""
        self.check()
        return pure_functions(EncoderDecoderNetwork(self, vocab_size))


class EncoderDecoderNetwork(Network):
    """An encoder, and a decoder that attends to it; both share the embedding."""

    cross = True

    def setup(self):
        """Create the layers."""
        super().setup()
        self.encoder = [Block(self.config, cross=False) for _ in range(self.config.stacks()["encoder"])]
        self.encoder_norm = self.new_final_norm()
        self.encoder_table = self.new_position_table("encoder")
        self.encoder_enter = self.new_embedding_norm()

    def encode(self, inputs: Inputs) -> tuple[SourceKeyValues, Array]:
        """Return the keys and values of the encoder's states for each decoder layer, and their segments [B, S]."""
        if inputs.encoder is None:
            raise ValueError("inputs.encoder: expected tokens, got None. An encoder-decoder reads a source.")
        ids_BS, position_BS, segment_BS = inputs.encoder
        length, number_BS = ids_BS.shape[1], token_numbers(inputs.encoder)
        self.check_length(length)
        attend = self.self_attention(segment_BS, self.encoder_table, causal=False)
        attention = self.attention_context(attend, position_BS)
        x_BSD = self.encoder_enter(self.embed(ids_BS, position_BS, self.encoder_table, length))
        x_BSD = self.drop(x_BSD, number_BS)
        x_BSD, _ = apply_layers(self.encoder, self.stacked_params("encoder"), x_BSD, number_BS, attention)
        memory_BSD = self.encoder_norm(x_BSD)
        if params := self.stacked_params("decoder"):
            sharded = {"decoder": {"cross_attention": params["cross_attention"]}}
            whole = gather_params(sharded, axes.axis_names)["decoder"]["cross_attention"]
            return stacked_cross_kv(self.config, whole, memory_BSD), segment_BS
        return cross_kv([layer.cross_attention for layer in self.decoder], memory_BSD), segment_BS
