"""Rules that a text obeys, by changing the scores of tokens; equal to the logits processors of transformers.

Shapes: N texts, X tokens of the decoder so far and those to come, V vocabulary.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.decoding.base import NO_TOKEN, Eos, end_ids
from kd_jax.types import Array, Inputs, Tokens

# (scores_NV of the next token, written ids_NT, number of tokens written) -> scores_NV
Process = Callable[[Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rules of a text. Prompt and forced tokens of a decoder count as its text, except in lengths.

    Attributes:
      repetition_penalty: divides positive scores, and multiplies negative ones, of tokens that the text has.
      no_repeat_ngram: length of n-grams that a text has once; 0 for no limit.
      no_source_ngram: length of n-grams of the prompt that a text has not; 0 for no limit.
      min_length: least number of tokens written before an end token.
      suppress_first: ids that are not written first.
      force_end: whether the last token of the maximum length is an end token.

    References:
      Keskar et al. 2019, arXiv 1909.05858, section 4.1 (repetition_penalty); Paulus et al. 2017, arXiv 1705.04304,
      section 2.5 (no_repeat_ngram).
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    no_source_ngram: int = 0
    min_length: int = 0
    suppress_first: tuple[int, ...] = ()
    force_end: bool = False

    def processor(self, inputs: Inputs, eos: Eos, length: int) -> Process | None:
        """Return the change of scores after prompts, for texts of at most `length` tokens; None for no change.

        In beam search N is a multiple of the number of prompts: the hypotheses of a prompt follow each other.
        """
        if self == NO_RULES:
            return None
        prompt_BP = real_ids(inputs.decoder)
        source_BS = prompt_BP if inputs.encoder is None else real_ids(inputs.encoder)
        ends = jnp.array(end_ids(eos))

        def process(scores_NV: Array, ids_NT: Array, written: Array) -> Array:
            copies = len(ids_NT) // len(prompt_BP)
            text_NX = jnp.concatenate([jnp.repeat(prompt_BP, copies, axis=0), ids_NT], axis=1)
            count = prompt_BP.shape[1] + written
            if self.repetition_penalty != 1:
                seen_NV = mark_ids(scores_NV, text_NX, text_NX != NO_TOKEN)
                scores_NV = penalise_repetition(scores_NV, seen_NV, self.repetition_penalty)
            if self.no_repeat_ngram:
                scores_NV = suppress_ngrams(scores_NV, text_NX, count, text_NX, self.no_repeat_ngram)
            if self.no_source_ngram:
                source_NS = jnp.repeat(source_BS, copies, axis=0)
                scores_NV = suppress_ngrams(scores_NV, text_NX, count, source_NS, self.no_source_ngram)
            if self.min_length:
                too_short = written < self.min_length
                scores_NV = jnp.where(too_short, scores_NV.at[:, ends].set(-jnp.inf), scores_NV)
            if self.force_end:
                end_NV = jnp.full_like(scores_NV, -jnp.inf).at[:, ends[0]].set(0.0)
                scores_NV = jnp.where(written == length - 1, end_NV, scores_NV)
            if self.suppress_first:
                first_NV = scores_NV.at[:, jnp.array(self.suppress_first)].set(-jnp.inf)
                scores_NV = jnp.where(written == 0, first_NV, scores_NV)
            return scores_NV

        return process


NO_RULES = Rules()


def real_ids(tokens: Tokens) -> Array:
    """Return the ids of tokens, with NO_TOKEN in place of padding."""
    return jnp.where(tokens.segment_BT > 0, tokens.ids_BT, NO_TOKEN)


def mark_ids(scores_NV: Array, ids_NX: Array, where_NX: Array) -> Array:
    """Return True at the ids of each row that are marked, bool [N, V]."""
    rows_N1 = jnp.arange(len(ids_NX))[:, None]
    ids_NX = jnp.where(where_NX, ids_NX, scores_NV.shape[1])  # beyond the vocabulary, where nothing is set
    return jnp.zeros(scores_NV.shape, bool).at[rows_N1, ids_NX].set(True, mode="drop")


def penalise_repetition(scores_NV: Array, seen_NV: Array, penalty: float) -> Array:
    """Divide positive scores of seen tokens by the penalty, and multiply negative ones."""
    penalised_NV = jnp.where(scores_NV > 0, scores_NV / penalty, scores_NV * penalty)
    return jnp.where(seen_NV, penalised_NV, scores_NV)


def suppress_ngrams(scores_NV: Array, text_NX: Array, count: Array, other_NY: Array, n: int) -> Array:
    """Suppress tokens that would complete an n-gram of `other` after the first `count` tokens of a text.

    Examples:
      >>> text = jnp.array([[1, 2, 3, 1, 2, NO_TOKEN]])
      >>> print(suppress_ngrams(jnp.zeros((1, 5)), text, jnp.int32(5), text, 3))  # 1 2 3 was there
      [[  0.   0.   0. -inf   0.]]
    """
    padding = [(0, 0), (n - 1, 0)]  # a text may be shorter than n - 1
    end_NY = jax.lax.dynamic_slice_in_dim(jnp.pad(text_NX, padding, constant_values=NO_TOKEN), count, n - 1, axis=1)
    windows = max(other_NY.shape[1] - n + 1, 0)
    last_NW = other_NY[:, n - 1 :]
    matches_NW = last_NW != NO_TOKEN
    for i in range(n - 1):
        matches_NW &= (other_NY[:, i : i + windows] == end_NY[:, i, None]) & (end_NY[:, i, None] != NO_TOKEN)
    return jnp.where(mark_ids(scores_NV, last_NW, matches_NW), -jnp.inf, scores_NV)
