"""From prompts to texts: shared by training, evaluation, generation and pseudo-targets."""

import functools

import numpy as np

from kd_jax.decoding.base import suppress
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.sampling import sample
from kd_jax.models.base import Architecture, Model
from kd_jax.runtime.devices import Compiled, Devices
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.types import Array, Inputs, Params


def output_length(decoding: Decoding, architecture: Architecture, inputs: Inputs) -> int:
    """Return the maximum number of tokens written for prompts of this padded length."""
    positions = inputs.decoder.ids_BT.shape[1] - 1
    prompt_length = positions if inputs.encoder is None else inputs.encoder.ids_BT.shape[1]
    length = decoding.max_length(prompt_length)
    return min(length, architecture.context - positions) if architecture.context else length


def generate(
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
    """Write a text for each prompt, by beam search if `way` is "beam", else token by token.

    Returns:
      int32 [B, T], the end token included, NO_TOKEN (-1) after it.
    """
    model, length = suppress(model, suppress_tokens), output_length(decoding, architecture, inputs)
    if way == "beam":
        output = beam_search(
            model,
            params,
            inputs,
            eos=eos,
            length=length,
            beam=decoding.beam,
            alpha=decoding.length_penalty,
            best=1,
        )
        return output.ids_BKT[:, 0]
    if not decoding.sampling.temperature and decoding.sampling.repetition_penalty == 1:
        return greedy(model, params, inputs, eos=eos, length=length)
    return sample(model, params, inputs, eos=eos, length=length, sampling=decoding.sampling)


@functools.cache
def compile_generate(
    architecture: Architecture,
    vocab_size: int,
    way: str,
    decoding: Decoding,
    eos: int,
    suppress_tokens: tuple[int, ...],
    devices: Devices,
) -> Compiled:
    """Return `generate` compiled for (params, inputs) on devices; equal arguments share one program in a process.

    So training, which decodes validation texts, and evaluation compile a network once.
    """
    function = functools.partial(
        generate,
        model=architecture.build(vocab_size),
        architecture=architecture,
        way=way,
        decoding=decoding,
        eos=eos,
        suppress_tokens=suppress_tokens,
    )
    return devices.compile(function)


def to_text(ids_T: np.ndarray, tokenizer: Tokenizer) -> str:
    """Return the text before the end token."""
    ids = ids_T.tolist()
    return tokenizer.decode(ids[: ids.index(tokenizer.eos)] if tokenizer.eos in ids else ids)
