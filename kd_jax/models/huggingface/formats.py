"""All formats that are implemented, by config.json's model_type."""

from kd_jax.models.huggingface import decoder_only, encoder_decoder

FORMATS = {one.model_type: one for one in (*decoder_only.FORMATS, *encoder_decoder.FORMATS)}
