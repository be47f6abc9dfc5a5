"""From a batch of sources to text: what the phases `evaluate` and `generate` share."""

import functools

import numpy as np

from kd_jax.data.tokenizers import EOS, START, Tokenizer
from kd_jax.decoding import search as decode
from kd_jax.experiment import Evaluation
from kd_jax.types import Batch, Model, Params


def output_length(evaluation: Evaluation, source_length: int) -> int:
    """The most tokens written for a source padded to `source_length`."""
    return int(evaluation.length_ratio * source_length) + 8


def translate_step(params: Params, batch: Batch, *, model: Model, beam: int, evaluation: Evaluation, all_sum=None):
    """The best hypothesis of every row, int32 [B, T]; greedy where beam is 1."""
    del all_sum  # nothing is added up here
    length = output_length(evaluation, batch.source_BS.shape[1])
    ends = {"start": START, "eos": EOS, "length": length}
    if beam == 1:
        return decode.greedy(model, params, batch.source_BS, batch.source_mask_BS, **ends)
    search = functools.partial(decode.beam_search, beam=beam, alpha=evaluation.length_penalty)
    return search(model, params, batch.source_BS, batch.source_mask_BS, **ends).ids_BKT[:, 0]


def to_text(ids_T: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text before the end of the sentence."""
    ids = ids_T.tolist()
    return tokenizer.decode(ids[: ids.index(EOS)] if EOS in ids else ids)
