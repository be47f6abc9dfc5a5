"""From prompts to text: what evaluation, generation and pseudo-targets share."""

import numpy as np

from kd_jax.decoding.base import suppress
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.sampling import sample
from kd_jax.models.base import Architecture, Model
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.types import Array, Inputs, Params


def output_length(decoding: Decoding, architecture: Architecture, inputs: Inputs) -> int:
    """The most tokens written for prompts of this padded length: what decoding allows, and the model's positions."""
    before = inputs.decoder.ids_BT.shape[1] - 1
    most = decoding.most(before if inputs.encoder is None else inputs.encoder.ids_BT.shape[1])
    return min(most, architecture.context - before) if architecture.context else most


def write(
    params: Params,
    inputs: Inputs,
    *,
    model: Model,
    architecture: Architecture,
    way: str,
    decoding: Decoding,
    eos: int,
    suppress_tokens: tuple[int, ...] = (),
) -> Array:
    """What a model writes, int32 [B, T].

    Args:
      params, inputs: the model's parameters, and prompts.
      model, architecture: the network.
      way: "beam" for the best hypothesis of the beam search; else token by token.
      decoding: the settings.
      eos: id that ends a text.
      suppress_tokens: ids that are never written.
    """
    model = suppress(model, suppress_tokens)
    ends = {"eos": eos, "length": output_length(decoding, architecture, inputs)}
    if way == "beam":
        search = {"beam": decoding.beam, "alpha": decoding.length_penalty, "best": 1}
        return beam_search(model, params, inputs, **search, **ends).ids_BKT[:, 0]
    if not decoding.sampling.temperature and decoding.sampling.repetition_penalty == 1:
        return greedy(model, params, inputs, **ends)
    return sample(model, params, inputs, sampling=decoding.sampling, **ends)


def to_text(ids_T: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text before the end id."""
    ids = ids_T.tolist()
    return tokenizer.decode(ids[: ids.index(tokenizer.eos)] if tokenizer.eos in ids else ids)
