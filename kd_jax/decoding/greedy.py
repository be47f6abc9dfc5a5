"""Greedy decoding."""

from kd_jax.decoding.base import Eos, decode_token_by_token
from kd_jax.decoding.rules import NO_RULES, Rules
from kd_jax.decoding.vocabulary import argmax
from kd_jax.models.base import Model
from kd_jax.types import Array, Inputs, Params


def greedy(model: Model, params: Params, inputs: Inputs, *, eos: Eos, length: int, rules: Rules = NO_RULES) -> Array:
    """Write the most likely token at each step, among those that the rules leave.

    Args:
      model: the network.
      params: its parameters.
      inputs: prompts, as from a layout's `prompts`.
      eos: id of the end token, or several.
      length: maximum number of tokens written, static.
      rules: of the texts, static.

    Returns:
      int32 [B, length], the end token included, NO_TOKEN (-1) after it.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kd_jax import Tokens
      >>> bigrams = Model(*[None] * 4, prefill=lambda *_: (), extend=lambda table, cache, ids: (table[ids], cache))
      >>> start, one = jnp.array([[1]]), jnp.array([[1]])
      >>> prompts = Inputs(jnp.array([0]), Tokens(start, 0 * one, one), None)
      >>> greedy(bigrams, jnp.eye(5, k=1), prompts, eos=4, length=5).tolist()  # token i + 1 follows token i
      [[2, 3, 4, -1, -1]]
    """
    process = rules.processor(inputs, eos, length)
    choose = lambda scores_BV, written: argmax(scores_BV)  # noqa: E731
    return decode_token_by_token(model, params, inputs, eos=eos, length=length, choose=choose, process=process)
