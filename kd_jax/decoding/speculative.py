"""Speculative decoding over two models' pure functions: a small one drafts, a large one reads; jittable.

The text is the large model's own greedy text. It reads a round's drafts in one pass, which costs it little more than
one token where its time goes into fetching parameters, as at batch 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.decoding.base import NO_TOKEN, argmax, first_tokens
from kd_jax.errors import KdError
from kd_jax.models.base import Cache, Model
from kd_jax.types import Array, Inputs, Params


class Side(NamedTuple):
    """One of the two models: its network and its parameters."""

    model: Model
    params: Params


class Speculated(NamedTuple):
    """What was written, and how much of it was drafted.

    Attributes:
      ids_BT: int32, as `greedy`.
      drafted_B: int32, tokens that the draft wrote for a row before its text ended; neither those behind an end that
        the draft wrote itself, nor those beyond `length`.
      accepted_B: int32, how many of them stand in the text.
    """

    ids_BT: Array
    drafted_B: Array
    accepted_B: Array


class Loop(NamedTuple):
    """One text per row, in the making; both caches have read all of it but `token_B`."""

    written: Array
    token_B: Array
    ended_B: Array
    speculated: Speculated
    target_cache: Cache
    draft_cache: Cache


def speculative(target: Side, draft: Side, inputs: Inputs, *, eos: int, length: int, drafts: int) -> Speculated:
    """The target's greedy text, most of it written by the draft and only read by the target.

    In each round the draft writes `drafts` tokens, greedily. The target reads them at once, keeps those that it would
    have written itself, and adds the one that it would have written next: a round gives 1 to `drafts` + 1 tokens. They
    are those of `greedy` but where two logits tie within rounding, since a product of several tokens may round
    otherwise than that of one.

    All rows go on by as many tokens as the row with the fewest, among those whose text goes on. So a cache keeps one
    slot for all rows, ordinary decoding pays nothing for it, and going back is a smaller `slot`. Beside slots for each
    row this drafts some tokens twice in large batches; at batch 1, where speculation pays, it drafts none twice.

    Args:
      target, draft: the model whose text it is, and the one that drafts; of one family, over one tokeniser.
      inputs: prompts, as a layout's `prompts` makes them for that family; rows that only fill up a batch end at once.
      eos: id that ends a text.
      length: most tokens written, static.
      drafts: tokens drafted a round, static, at least 1.

    Raises:
      KdError: where the two do not go together, or nothing is drafted.

    References:
      Leviathan et al. 2023, arXiv 2211.17192, at temperature 0; Stern et al. 2018, arXiv 1811.03115.

    Examples:
      >>> from kd_jax import Tokens
      >>> one = jnp.ones((1, 1), jnp.int32)
      >>> nothing = jnp.zeros((1, 1, 0), bool), jnp.arange(0), (), (), one > 0
      >>> empty = Cache(jnp.int32(0), one[0], *nothing)
      >>> bigrams = Model(*[None] * 4, prefill=lambda *_: empty, extend=lambda table, cache, ids: (table[ids], cache))
      >>> prompts = Inputs(one[0], Tokens(one, 0 * one, one), None)
      >>> follows = jnp.eye(6, k=1)  # token i + 1 follows token i; in the draft 5 follows 3
      >>> knows, guesses = Side(bigrams, follows), Side(bigrams, follows.at[3, 5].set(2.0))
      >>> for figures in speculative(knows, guesses, prompts, eos=5, length=6, drafts=3):
      ...     print(figures.tolist())
      [[2, 3, 4, 5, -1, -1]]
      [4]
      [3]
    """
    if drafts < 1:
        raise KdError(f"drafts: {drafts}; wanted at least 1 token a round, or `greedy`")
    token_B, real_B = first_tokens(inputs)
    # A round begins with at most `length` - 1 tokens written and reads `drafts` + 1.
    caches = [side.model.prefill(side.params, inputs, length).reserve(drafts) for side in (target, draft)]
    _check_pair(target, draft, *caches, token_B)
    none_B = jnp.zeros(len(token_B), jnp.int32)
    first = Loop(
        written=jnp.int32(0),
        token_B=token_B,
        ended_B=~real_B,
        speculated=Speculated(jnp.full((len(token_B), length + drafts), NO_TOKEN, jnp.int32), none_B, none_B),
        target_cache=caches[0],
        draft_cache=caches[1],
    )
    step = functools.partial(_round, target, draft, eos, length, drafts)
    last = jax.lax.while_loop(lambda loop: (loop.written < length) & ~loop.ended_B.all(), step, first)
    return last.speculated._replace(ids_BT=last.speculated.ids_BT[:, :length])


def _check_pair(target: Side, draft: Side, target_cache: Cache, draft_cache: Cache, token_B: Array) -> None:
    """Raises KdError where the draft cannot write the target's texts."""
    family = lambda cache: "an encoder-decoder" if cache.cross_kv else "decoder-only"  # noqa: E731
    if family(target_cache) != family(draft_cache):
        raise KdError(f"draft: {family(draft_cache)}, the target {family(target_cache)}; wanted one family")
    sides = (target, target_cache), (draft, draft_cache)
    sizes = [jax.eval_shape(side.model.step, side.params, cache, token_B)[0].shape[1] for side, cache in sides]
    if sizes[0] != sizes[1]:
        raise KdError(f"draft: {sizes[1]} tokens in its vocabulary, the target has {sizes[0]}; wanted one tokeniser")


def _propose(draft: Side, cache: Cache, token_B: Array, drafts: int) -> tuple[Array, Cache]:
    """(what follows `token_B`, int32 [B, drafts]; a cache that has read all of it)."""

    def step(state: tuple[Cache, Array], _: None) -> tuple[tuple[Cache, Array], Array]:
        logits_BV, cache = draft.model.step(draft.params, *state)
        token_B = argmax(logits_BV)
        return (cache, token_B), token_B

    # One step more than drafts: where all are accepted, the next round begins behind the last of them.
    (cache, _), proposed_TB = jax.lax.scan(step, (cache, token_B), length=drafts + 1)
    return proposed_TB[:-1].T, cache


def _round(target: Side, draft: Side, eos: int, length: int, drafts: int, loop: Loop) -> Loop:
    """Some more tokens of every text."""
    rows, place_T = len(loop.token_B), jnp.arange(drafts + 1)[None]
    draft_BT, draft_cache = _propose(draft, loop.draft_cache, loop.token_B, drafts)
    read_BT = jnp.concatenate([loop.token_B[:, None], draft_BT], 1)
    logits_BTV, target_cache = target.model.extend(target.params, loop.target_cache, read_BT)
    chosen_BT = argmax(logits_BTV.reshape(-1, logits_BTV.shape[2])).reshape(rows, -1)

    agreed_B = jnp.cumprod(draft_BT == chosen_BT[:, :-1], axis=1).sum(1)  # drafts before the first other one
    ends_B = ((chosen_BT == eos) & (place_T <= agreed_B[:, None])).any(1)
    room_B = jnp.where(loop.ended_B | ends_B, drafts + 1, agreed_B + 1)
    count = jnp.minimum(room_B.min(), length - loop.written)

    written_BT = (place_T < count) & ~_behind(chosen_BT == eos) & ~loop.ended_B[:, None]
    kept_BT = jnp.where(written_BT, chosen_BT, NO_TOKEN)
    ids_BT, drafted_B, accepted_B = loop.speculated
    ids_BT = jax.lax.dynamic_update_slice_in_dim(ids_BT, kept_BT, loop.written, 1)
    drafted_BT = ~_behind(draft_BT == eos) & (place_T[:, :-1] < length - loop.written) & ~loop.ended_B[:, None]
    accepted_BT = drafted_BT & (place_T[:, :-1] < jnp.minimum(agreed_B, count)[:, None])
    unread = drafts + 1 - count
    return Loop(
        written=loop.written + count,
        token_B=jax.lax.dynamic_index_in_dim(kept_BT, count - 1, 1, keepdims=False),
        ended_B=loop.ended_B | (kept_BT == eos).any(1),
        speculated=Speculated(ids_BT, drafted_B + drafted_BT.sum(1), accepted_B + accepted_BT.sum(1)),
        target_cache=target_cache.rewind(unread),
        draft_cache=draft_cache.rewind(unread),
    )


def _behind(ends_BT: Array) -> Array:
    """True behind the first end of each row."""
    ends_BT = ends_BT.astype(jnp.int32)
    return jnp.cumsum(ends_BT, axis=1) > ends_BT
