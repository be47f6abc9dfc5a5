"""Draws from the teacher's distribution: few bytes a token, and unbiased."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.losses import divergence
from kd_jax.losses.base import logp_at
from kd_jax.signals.base import Aligned, check_temperature, check_whole, id_dtype
from kd_jax.types import Array, Field, Payload


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Ids drawn from the teacher's softmax, with how often each came (Sparse Logit Sampling, arXiv 2503.16870).

    count_v / draws is an unbiased estimate of p_v, so the gradient of forward KL, which is linear in p, is
    unbiased too, the tail included; other divergences are not linear in p and are refused. The proposal is
    the teacher's own distribution, so every importance weight is 1 and counts are all that is kept. Draws
    are stratified over blocks of the vocabulary: the i-th block is the inverse of the blocks' cumulative
    distribution at (i + u_i) / draws, which keeps the mean and lowers the variance; the token inside is free.
    The value of the KL is that of the estimate, not of p: its level is shifted by the estimate's entropy,
    its gradient is right.

    A record holds, per target token, `ids` [draws] and `counts` [draws], the unique ids first and zeros
    behind them, which the store compresses away.

    Attributes:
      draws: per token; about a quarter of them are unique where the teacher is moderately sure.
      temperature: T of the teacher's and the student's softmax.
      seed: decides the draws, with the example and the position.

    Examples:
      >>> certain = jnp.asarray([[-jnp.inf, 0.0, -jnp.inf]])
      >>> payload = Sampled(draws=3).reduce(certain, jax.random.split(jax.random.key(0), 1))
      >>> payload["ids"].tolist(), payload["counts"].tolist()
      ([[1, 0, 0]], [[3, 0, 0]])
    """

    draws: int = 50
    temperature: float = 1.0
    seed: int = 0

    origin, level, kind = "cache", "logits", "divergence"

    @property
    def name(self) -> str:
        return f"sampled_{self.draws}_t{self.temperature:g}_s{self.seed}"

    def check(self, vocab_size: int) -> None:
        """Refuses fields out of their ranges.

        Raises:
          KdError: names the field.
        """
        check_whole("draws", self.draws, 1, 2**16 - 1, f"1 to {2**16 - 1}")
        check_whole("seed", self.seed, 0, 2**32 - 1, "a whole number, from 0")
        check_temperature(self.temperature)

    def supports(self, loss: Callable[..., Array]) -> bool:
        """Forward KL alone: it is linear in the teacher's probabilities."""
        return loss is divergence.forward_kl

    def schema(self, vocab_size: int) -> dict[str, Field]:
        """Fields per target token; ids and counts take as few bytes as hold them."""
        counts = "uint8" if self.draws < 2**8 else "uint16"
        return {"ids": Field((self.draws,), id_dtype(vocab_size)), "counts": Field((self.draws,), counts)}

    def reads(self, vocab_size: int) -> dict[str, Field]:
        """All of the schema's."""
        return self.schema(vocab_size)

    def covering(self, other: "Sampled") -> "Sampled":
        """Itself: signals of one name are the same."""
        return self

    def reduce(self, logits_NV: Array, key_N: Array) -> Payload:
        """Teacher logits [N, V] and one key per token to {"ids" [N, R], "counts" [N, R]}, R = draws."""
        logits_NV = logits_NV.astype(jnp.float32) / self.temperature
        key_N = jax.vmap(jax.random.fold_in, (0, None))(key_N, self.seed)
        return _unique(jax.vmap(functools.partial(_draw, draws=self.draws))(logits_NV, key_N))

    def align(self, logits_NV: Array, payload: Payload, temperature: Any) -> Aligned:
        """Log of the estimate and of the student's probability at the drawn ids, K = draws.

        The estimate sums to one over the ids; the student's side does not, nor need it for forward KL.
        """
        logits_NV = logits_NV.astype(jnp.float32)
        if not isinstance(temperature, float) or temperature != 1.0:
            logits_NV = logits_NV / temperature
        counts_NR = payload["counts"].astype(jnp.float32)
        drawn_NR = counts_NR > 0
        teacher_NR = jnp.where(drawn_NR, jnp.log(jnp.where(drawn_NR, counts_NR, 1.0) / self.draws), -jnp.inf)
        return Aligned(teacher_NR, *logp_at(logits_NV, payload["ids"].astype(jnp.int32)))


def _draw(logits_V: Array, key: Array, draws: int) -> Array:
    """Ids [R] of one token's draws, ascending: first a block of the vocabulary by its mass, then a token inside.

    One cumulative sum over the vocabulary would end in steps of 6e-8, below which no token is ever drawn.
    """
    block_key, token_key = jax.random.split(key)
    size = max(1, math.isqrt(logits_V.size // draws))  # of a block: M blocks cost what all draws inside them do
    filled_V = jnp.pad(logits_V, (0, -logits_V.size % size), constant_values=-jnp.inf)
    logits_MB = filled_V.reshape(-1, size)
    mass_M = jnp.exp(logits_MB - logits_V.max()).sum(-1)
    # Ascending, a block's mass is at least the mean of those summed before it, so rounding does not swallow it.
    ascending_M = jnp.argsort(mass_M)
    cumulative_M = jnp.cumsum(mass_M[ascending_M])
    coarse_R, fine_R = jax.random.uniform(block_key, (2, draws))
    strata_R = (jnp.arange(draws, dtype=jnp.float32) + (coarse_R + fine_R * 2.0**-23)) / draws  # uniform has 23 bits
    places_R = jnp.searchsorted(cumulative_M, strata_R * cumulative_M[-1], side="right")
    blocks_R = ascending_M[jnp.minimum(places_R, mass_M.size - 1)]
    tokens_R = jax.random.categorical(token_key, logits_MB[blocks_R], mode="high")
    return jnp.sort(blocks_R * size + tokens_R)


def _unique(ids_NR: Array) -> Payload:
    """Ascending ids to the unique ones, most frequent first, and their counts; zeros behind them."""
    first_NR = jnp.concatenate([jnp.ones_like(ids_NR[:, :1], bool), ids_NR[:, 1:] != ids_NR[:, :-1]], axis=1)
    run_NR = jnp.cumsum(first_NR, axis=1) - 1  # the place of each draw's id among the unique ones
    zeros = jnp.zeros(ids_NR.shape[1], jnp.int32)
    counts_NR = jax.vmap(lambda run: zeros.at[run].add(1))(run_NR)
    unique_NR = jax.vmap(lambda run, ids: zeros.at[run].set(ids))(run_NR, ids_NR)
    order_NR = jnp.argsort(-counts_NR, axis=1)
    sort = lambda x: jnp.take_along_axis(x, order_NR, axis=1)  # noqa: E731
    return {"ids": sort(unique_NR), "counts": sort(counts_NR)}
