"""From prompts to text: what evaluation, generation and pseudo-targets share."""

import numpy as np

from kd_jax.data.tokenizers import EOS, Tokenizer
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.greedy import greedy
from kd_jax.experiment import Evaluation
from kd_jax.models.base import Model
from kd_jax.types import Array, Inputs, Params


def output_length(evaluation: Evaluation, inputs: Inputs) -> int:
    """The most tokens written for prompts of this padded length."""
    prompt = inputs.decoder if inputs.encoder is None else inputs.encoder
    return int(evaluation.length_ratio * prompt.ids_BT.shape[1]) + 8


def write(params: Params, inputs: Inputs, *, model: Model, beam: int, evaluation: Evaluation) -> Array:
    """The best hypothesis of every row, int32 [B, T]; greedy where beam is 1."""
    ends = {"eos": EOS, "length": output_length(evaluation, inputs)}
    if beam == 1:
        return greedy(model, params, inputs, **ends)
    return beam_search(model, params, inputs, beam=beam, alpha=evaluation.length_penalty, **ends).ids_BKT[:, 0]


def to_text(ids_T: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text before the end id."""
    ids = ids_T.tolist()
    return tokenizer.decode(ids[: ids.index(EOS)] if EOS in ids else ids)
