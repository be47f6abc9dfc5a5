"""Sampling.

Logits are processed in the order of transformers' `generate`: rules, temperature, top_k, top_p, min_p. Of
tokens that tie at a limit the first ids are kept, so that no more remain than were asked for.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kd_jax.decoding.base import Eos, decode_token_by_token
from kd_jax.decoding.rules import NO_RULES, Rules
from kd_jax.decoding.vocabulary import argmax, draw, nucleus_mask, top_k_mask
from kd_jax.models.base import Model
from kd_jax.tasks.base import Sampling
from kd_jax.types import Array, Inputs, Params


def sample(
    model: Model,
    params: Params,
    inputs: Inputs,
    *,
    eos: Eos,
    length: int,
    sampling: Sampling,
    rules: Rules = NO_RULES,
) -> Array:
    """Write one token after another, drawn from the model's distribution; the most likely at temperature 0.

    A draw depends only on `sampling.seed`, the row's `index_B` and the position. So a text is the same in any batch and
    on any number of devices. The repetition penalty counts the decoder's tokens, as in transformers: start token and
    written ones, in a decoder-only model the prompt too, but not the source of an encoder-decoder.

    Args:
      model: the network.
      params: its parameters.
      inputs: prompts, as from a layout's `prompts`.
      eos: id of the end token, or several.
      length: maximum number of tokens written, static.
      sampling: settings, static.
      rules: further rules of the texts, static.

    Returns:
      int32 [B, length], the end token included, NO_TOKEN (-1) after it.

    Examples:
      >>> from kd_jax import Tokens
      >>> bigrams = Model(*[None] * 4, prefill=lambda *_: (), extend=lambda table, cache, ids: (table[ids], cache))
      >>> start, one = jnp.array([[1], [1]]), jnp.array([[1], [1]])
      >>> prompts = Inputs(jnp.array([0, 1]), Tokens(start, 0 * one, one), None)
      >>> table = jnp.log(jnp.eye(5, k=1))  # token i + 1 follows token i, surely
      >>> sample(bigrams, table, prompts, eos=4, length=5, sampling=Sampling(temperature=1.0)).tolist()
      [[2, 3, 4, -1, -1], [2, 3, 4, -1, -1]]
      >>> loop = 2.0 * jnp.eye(5) + jnp.eye(5, k=1)  # token i follows itself, but for the penalty
      >>> sample(bigrams, loop, prompts, eos=4, length=5, sampling=Sampling(repetition_penalty=3.0)).tolist()
      [[2, 3, 4, -1, -1], [2, 3, 4, -1, -1]]
    """
    fold_in_each = jax.vmap(jax.random.fold_in, (None, 0))
    keys_B = fold_in_each(jax.random.key(sampling.seed), inputs.index_B)
    rules = dataclasses.replace(rules, repetition_penalty=sampling.repetition_penalty)

    def choose(scores_BV: Array, written: Array) -> Array:
        if not sampling.temperature:
            return argmax(scores_BV)
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, written)
        return draw(step_keys_B, truncate(scores_BV, sampling))

    process = rules.processor(inputs, eos, length)
    return decode_token_by_token(model, params, inputs, eos=eos, length=length, choose=choose, process=process)


def truncate(logits_NV: Array, sampling: Sampling) -> Array:
    """Divide the logits by the temperature, and set tokens that must not be drawn to -inf.

    top_k, top_p and min_p each apply to the tokens that the one before left.
    """
    logits_NV = logits_NV.astype(jnp.float32) / sampling.temperature
    if sampling.top_k:
        logits_NV = jnp.where(top_k_mask(logits_NV, min(sampling.top_k, logits_NV.shape[1])), logits_NV, -jnp.inf)
    if sampling.top_p < 1:
        logits_NV = jnp.where(nucleus_mask(logits_NV, sampling.top_p), logits_NV, -jnp.inf)
    if sampling.min_p:
        least_N1 = logits_NV.max(-1, keepdims=True) + jnp.log(sampling.min_p)
        logits_NV = jnp.where(logits_NV >= least_N1, logits_NV, -jnp.inf)
    return logits_NV
