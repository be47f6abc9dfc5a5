"""Small architectures of ours that have a format."""

from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder

V = 50
SIZES = {"d_model": 16, "heads": 4, "d_ff": 24, "dropout": 0.0}
MODELS = {
    "encoder_decoder": EncoderDecoder(1, 1, **SIZES),
    "decoder_only": DecoderOnly(1, kv_heads=2, context=64, **SIZES),
}
