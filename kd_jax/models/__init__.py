"""Networks: the contract (`base`), Transformers of both families, int8 weights, FLOPs, Hugging Face's layout."""

from kd_jax.models.base import Architecture, Cache, Head, Model
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder

__all__ = ["Architecture", "Cache", "DecoderOnly", "EncoderDecoder", "Head", "Model"]
