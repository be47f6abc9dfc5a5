"""Speculative decoding: a small model drafts tokens, a large one verifies them.

The text is the large model's own greedy text. It reads the drafted tokens of a round in one pass. That costs little
more than one token if fetching parameters dominates, as at batch size 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.decoding.base import NO_TOKEN, Eos, is_end, last_prompt_tokens
from kd_jax.decoding.vocabulary import argmax
from kd_jax.errors import KdError
from kd_jax.models.base import Cache, Model
from kd_jax.types import Array, Inputs, Params


class BoundModel(NamedTuple):
    """A network with its parameters."""

    model: Model
    params: Params


class SpeculativeOutput(NamedTuple):
    """Texts of speculative decoding, with counts of drafted tokens.

    Attributes:
      ids_BT: int32, as from `greedy`.
      drafted_B: int32, tokens drafted for a row before its text ended, without those after an end token of the draft
        and those beyond `length`.
      accepted_B: int32, drafted tokens that are in the text.
    """

    ids_BT: Array
    drafted_B: Array
    accepted_B: Array


class LoopState(NamedTuple):
    """State of `speculative`, with one text per row. Both caches have read all of it except `token_B`."""

    written: Array
    token_B: Array
    ended_B: Array
    output: SpeculativeOutput
    target_cache: Cache
    draft_cache: Cache


def speculative(
    target: BoundModel, draft: BoundModel, inputs: Inputs, *, eos: Eos, length: int, drafts: int
) -> SpeculativeOutput:
    """Generate the target's greedy text, with tokens drafted by a smaller model.

    In each round the draft writes `drafts` tokens greedily. The target reads them at once, accepts those that it would
    have written, and adds its own next token: a round gives 1 to `drafts` + 1 tokens. The text equals that of `greedy`,
    unless two logits are equal within rounding: a matrix product over several tokens may be rounded differently.

    In a round every row advances by the smallest number of tokens accepted in any unfinished row. So one slot index
    serves all rows of the cache, and rejected tokens are discarded by lowering it. Rows that could have advanced
    further draft those tokens again; at batch size 1 this never happens.

    Args:
      target: the model whose text is written.
      draft: the model that drafts, of the same family and tokeniser.
      inputs: prompts, as from a layout's `prompts`; rows of padding end at once.
      eos: id of the end token, or several.
      length: maximum number of tokens written, static.
      drafts: number of tokens drafted in a round, static, at least 1.

    Returns:
      SpeculativeOutput: ids (-1 after the end token), and the numbers of drafted and of accepted tokens of each row.

    Raises:
      KdError: if the models differ in family or vocabulary, or `drafts` is less than 1.

    References:
      Leviathan et al. 2023, arXiv 2211.17192, at temperature 0; Stern et al. 2018, arXiv 1811.03115.

    Examples:
      >>> from kd_jax import Tokens
      >>> one = jnp.ones((1, 1), jnp.int32)
      >>> empty = Cache(jnp.int32(0), one[0], jnp.zeros((1, 1, 0), bool), jnp.arange(0), (), (), one > 0)
      >>> bigrams = Model(*[None] * 4, prefill=lambda *_: empty, extend=lambda table, cache, ids: (table[ids], cache))
      >>> prompts = Inputs(one[0], Tokens(one, 0 * one, one), None)
      >>> follows = jnp.eye(6, k=1)  # token i + 1 follows token i; in the draft 5 follows 3
      >>> target, draft = BoundModel(bigrams, follows), BoundModel(bigrams, follows.at[3, 5].set(2.0))
      >>> for x in speculative(target, draft, prompts, eos=5, length=6, drafts=3):
      ...     print(x.tolist())
      [[2, 3, 4, 5, -1, -1]]
      [4]
      [3]
    """
    if drafts < 1:
        raise KdError(f"drafts: expected at least 1, got {drafts}. Use `greedy` to draft none.")
    token_B, is_real_B = last_prompt_tokens(inputs)
    # A round starts with at most `length` - 1 tokens written and reads `drafts` + 1.
    target_cache, draft_cache = (
        side.model.prefill(side.params, inputs, length).reserve(drafts) for side in (target, draft)
    )
    _check_pair(target, draft, target_cache, draft_cache, token_B)
    zeros_B = jnp.zeros(len(token_B), jnp.int32)
    first = LoopState(
        written=jnp.int32(0),
        token_B=token_B,
        ended_B=~is_real_B,
        output=SpeculativeOutput(jnp.full((len(token_B), length + drafts), NO_TOKEN, jnp.int32), zeros_B, zeros_B),
        target_cache=target_cache,
        draft_cache=draft_cache,
    )
    step = functools.partial(_round, target, draft, eos, length, drafts)
    last = jax.lax.while_loop(lambda state: (state.written < length) & ~state.ended_B.all(), step, first)
    return last.output._replace(ids_BT=last.output.ids_BT[:, :length])


def _check_pair(target: BoundModel, draft: BoundModel, target_cache: Cache, draft_cache: Cache, token_B: Array) -> None:
    """Check that the draft can write the target's texts."""
    family = lambda cache: "an encoder-decoder" if cache.cross_kv else "decoder-only"  # noqa: E731
    if family(target_cache) != family(draft_cache):
        raise KdError(f"draft: expected {family(target_cache)} model as the target, got {family(draft_cache)}.")
    sides = (target, target_cache), (draft, draft_cache)
    sizes = [jax.eval_shape(side.model.step, side.params, cache, token_B)[0].shape[1] for side, cache in sides]
    if sizes[0] != sizes[1]:
        raise KdError(
            f"draft: expected the target's vocabulary of {sizes[0]} tokens, got {sizes[1]}. Use one tokeniser for both."
        )


def _propose(draft: BoundModel, cache: Cache, token_B: Array, drafts: int) -> tuple[Array, Cache]:
    """Return (drafted tokens, int32 [B, drafts]; a cache that has read all of them)."""

    def step(state: tuple[Cache, Array], _: None) -> tuple[tuple[Cache, Array], Array]:
        logits_BV, cache = draft.model.step(draft.params, *state)
        token_B = argmax(logits_BV)
        return (cache, token_B), token_B

    # One step more than drafts: if all are accepted, the next round continues after the last of them.
    (cache, _), draft_TB = jax.lax.scan(step, (cache, token_B), length=drafts + 1)
    return draft_TB[:-1].T, cache


def _round(target: BoundModel, draft: BoundModel, eos: Eos, length: int, drafts: int, state: LoopState) -> LoopState:
    """Draft and verify some tokens of every text."""
    rows, index_T = len(state.token_B), jnp.arange(drafts + 1)[None]
    draft_BT, draft_cache = _propose(draft, state.draft_cache, state.token_B, drafts)
    input_BT = jnp.concatenate([state.token_B[:, None], draft_BT], 1)
    logits_BTV, target_cache = target.model.extend(target.params, state.target_cache, input_BT)
    chosen_BT = argmax(logits_BTV.reshape(-1, logits_BTV.shape[2])).reshape(rows, -1)

    agreed_B = jnp.cumprod(draft_BT == chosen_BT[:, :-1], axis=1).sum(1)  # drafts before the first that differs
    ends_B = (is_end(chosen_BT, eos) & (index_T <= agreed_B[:, None])).any(1)
    advance_B = jnp.where(state.ended_B | ends_B, drafts + 1, agreed_B + 1)
    count = jnp.minimum(advance_B.min(), length - state.written)

    is_written_BT = (index_T < count) & ~_after_end(is_end(chosen_BT, eos)) & ~state.ended_B[:, None]
    written_BT = jnp.where(is_written_BT, chosen_BT, NO_TOKEN)
    ids_BT, drafted_B, accepted_B = state.output
    ids_BT = jax.lax.dynamic_update_slice_in_dim(ids_BT, written_BT, state.written, 1)
    is_open_BT = (index_T[:, :-1] < length - state.written) & ~state.ended_B[:, None]
    drafted_BT = ~_after_end(is_end(draft_BT, eos)) & is_open_BT
    accepted_BT = drafted_BT & (index_T[:, :-1] < jnp.minimum(agreed_B, count)[:, None])
    unread = drafts + 1 - count
    return LoopState(
        written=state.written + count,
        token_B=jax.lax.dynamic_index_in_dim(written_BT, count - 1, 1, keepdims=False),
        ended_B=state.ended_B | is_end(written_BT, eos).any(1),
        output=SpeculativeOutput(ids_BT, drafted_B + drafted_BT.sum(1), accepted_B + accepted_BT.sum(1)),
        target_cache=target_cache.rewind(unread),
        draft_cache=draft_cache.rewind(unread),
    )


def _after_end(is_end_BT: Array) -> Array:
    """Return True after the first end token of each row."""
    is_end_BT = is_end_BT.astype(jnp.int32)
    return jnp.cumsum(is_end_BT, axis=1) > is_end_BT
