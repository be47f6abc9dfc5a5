"""All implemented formats, by the model_type of config.json."""

from kd_jax.models.huggingface import decoder_only, encoder_decoder

FORMATS = {one.model_type: one for one in (*decoder_only.FORMATS, *encoder_decoder.FORMATS)}
