"""From prompts to texts: shared by training, evaluation, generation and pseudo-targets."""

import functools
import itertools
from typing import NamedTuple

import numpy as np

from kd_jax.decoding.base import suppress
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.rules import Rules
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


class TextTokens(NamedTuple):
    """Ids of a tokenizer that decoding treats differently from others; attributes of `Tokenizer`."""

    ends: tuple[int, ...]
    suppress_tokens: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    force_end: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TextTokens":
        """Return those of a tokenizer."""
        return cls(tokenizer.ends, tokenizer.suppress_tokens, tokenizer.suppress_first, tokenizer.force_end)

    def rules(self, decoding: Decoding) -> Rules:
        """Return the rules of texts."""
        return Rules(
            repetition_penalty=decoding.sampling.repetition_penalty,
            no_repeat_ngram=decoding.no_repeat_ngram,
            no_source_ngram=decoding.no_source_ngram,
            min_length=decoding.min_length,
            suppress_first=self.suppress_first,
            force_end=self.force_end,
        )


def generate(
    params: Params,
    inputs: Inputs,
    *,
    model: Model,
    architecture: Architecture,
    way: str,
    decoding: Decoding,
    tokens: TextTokens,
) -> Array:
    """Write a text for each prompt, by beam search if `way` is "beam", else token by token.

    Returns:
      int32 [B, T], the end token included, NO_TOKEN (-1) after it.
    """
    model, rules = suppress(model, tokens.suppress_tokens), tokens.rules(decoding)
    length = output_length(decoding, architecture, inputs)
    if way == "beam":
        output = beam_search(
            model,
            params,
            inputs,
            eos=tokens.ends,
            length=length,
            beam=decoding.beam,
            alpha=decoding.length_penalty,
            best=1,
            rules=rules,
        )
        return output.ids_BKT[:, 0]
    if not decoding.sampling.temperature:
        return greedy(model, params, inputs, eos=tokens.ends, length=length, rules=rules)
    return sample(model, params, inputs, eos=tokens.ends, length=length, sampling=decoding.sampling, rules=rules)


@functools.cache
def compile_generate(
    architecture: Architecture, vocab_size: int, way: str, decoding: Decoding, tokens: TextTokens, devices: Devices
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
        tokens=tokens,
    )
    return devices.compile(function)


def to_text(ids_T: np.ndarray, tokenizer: Tokenizer) -> str:
    """Return the text before the first end token."""
    ids = ids_T.tolist()
    return tokenizer.decode(list(itertools.takewhile(lambda i: i not in tokenizer.ends, ids)))
