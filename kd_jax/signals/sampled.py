"""Draws from the teacher's distribution: few bytes per token, and unbiased."""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kd_jax.losses import divergence
from kd_jax.losses.base import Loss, LossKind
from kd_jax.losses.support import logp_at
from kd_jax.signals.base import Aligned, Level, Origin, check_integer, check_temperature, id_dtype
from kd_jax.types import Array, Field, Payload


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Ids drawn from the teacher's softmax, with their counts (Sparse Logit Sampling, arXiv 2503.16870).

    count_v / draws is an unbiased estimate of p_v. Forward KL is linear in p, so its gradient is unbiased too, the tail
    included. Other divergences are not linear in p and are refused. The value of the KL is that of the estimate: it is
    shifted by the estimate's entropy.

    The tokens are drawn from the teacher's own distribution, so every importance weight is 1. Draws are stratified over
    blocks of the vocabulary: the i-th block is the inverse of the blocks' cumulative distribution at (i + u_i) / draws.
    This keeps the mean and lowers the variance. The token inside a block is drawn freely.

    A cached record holds, per target token, `ids` [draws] and `counts` [draws]: the unique ids first, then zeros, which
    compress well.

    Attributes:
      draws: number of draws per token; about a quarter are unique for a moderately confident teacher.
      temperature: T of the teacher's and the student's softmax.
      seed: seed of the draws; the example and the position are folded in.

    Examples:
      >>> certain = jnp.asarray([[-jnp.inf, 0.0, -jnp.inf]])
      >>> payload = Sampled(draws=3).reduce(certain, jax.random.split(jax.random.key(0), 1))
      >>> payload["ids"].tolist(), payload["counts"].tolist()
      ([[1, 0, 0]], [[3, 0, 0]])
    """

    draws: int = 50
    temperature: float = 1.0
    seed: int = 0

    origin: ClassVar[Origin] = "cache"
    level: ClassVar[Level] = "logits"
    loss_kind: ClassVar[LossKind] = "divergence"

    @property
    def name(self) -> str:
        """The name of the cache's folder and of the batch's payload."""
        return f"sampled_{self.draws}_t{self.temperature:g}_s{self.seed}"

    def check(self, vocab_size: int) -> None:
        """Check the ranges of all fields."""
        check_integer("draws", self.draws, 1, 2**16 - 1)
        check_integer("seed", self.seed, 0, 2**32 - 1)
        check_temperature(self.temperature)

    def supports(self, loss: Loss) -> bool:
        """Return True for forward KL: it is linear in the teacher's probabilities."""
        return loss is divergence.forward_kl

    def schema(self, vocab_size: int) -> dict[str, Field]:
        """Return the cached fields per target token, in the smallest dtypes."""
        counts = "uint8" if self.draws < 2**8 else "uint16"
        return {"ids": Field((self.draws,), id_dtype(vocab_size)), "counts": Field((self.draws,), counts)}

    def required_schema(self, vocab_size: int) -> dict[str, Field]:
        """Return the cached fields that `align` reads: all."""
        return self.schema(vocab_size)

    def merge(self, other: "Sampled") -> "Sampled":
        """Return this signal: signals of the same name are equal."""
        return self

    def reduce(self, logits_NV: Array, key_N: Array) -> Payload:
        """Draw ids from the teacher's distribution.

        Returns:
          {"ids": int32 [N, R], "counts": int32 [N, R]} with R = draws.
        """
        logits_NV = logits_NV.astype(jnp.float32) / self.temperature
        key_N = jax.vmap(jax.random.fold_in, (0, None))(key_N, self.seed)
        return _unique(jax.vmap(functools.partial(_draw, draws=self.draws))(logits_NV, key_N))

    def align(self, logits_NV: Array, payload: Payload, temperature: Any) -> Aligned:
        """Compute the logarithms of the estimate and of the student's probabilities at the drawn ids.

        The estimate sums to one over the ids. The student's side does not, and forward KL does not need it.

        Returns:
          Aligned with K = draws.
        """
        logits_NV = logits_NV.astype(jnp.float32)
        if not isinstance(temperature, float) or temperature != 1.0:
            logits_NV = logits_NV / temperature
        counts_NR = payload["counts"].astype(jnp.float32)
        drawn_NR = counts_NR > 0
        teacher_NR = jnp.where(drawn_NR, jnp.log(jnp.where(drawn_NR, counts_NR, 1.0) / self.draws), -jnp.inf)
        return Aligned(teacher_NR, *logp_at(logits_NV, payload["ids"].astype(jnp.int32)))


def _draw(logits_V: Array, key: Array, draws: int) -> Array:
    """Draw ids [R] for one token, ascending: first blocks of the vocabulary by their mass, then a token in each.

    One cumulative sum over the vocabulary has a resolution of 6e-8: it would never draw less likely tokens.
    """
    block_key, token_key = jax.random.split(key)
    size = max(1, math.isqrt(logits_V.size // draws))  # of a block: so M blocks cost as much as all draws
    filled_V = jnp.pad(logits_V, (0, -logits_V.size % size), constant_values=-jnp.inf)
    logits_MB = filled_V.reshape(-1, size)
    mass_M = jnp.exp(logits_MB - logits_V.max()).sum(-1)
    # In ascending order a block's mass is at least the mean of the blocks before it, so rounding does not swallow it.
    ascending_M = jnp.argsort(mass_M)
    cumulative_M = jnp.cumsum(mass_M[ascending_M])
    coarse_R, fine_R = jax.random.uniform(block_key, (2, draws))
    strata_R = (jnp.arange(draws, dtype=jnp.float32) + (coarse_R + fine_R * 2.0**-23)) / draws  # uniform has 23 bits
    places_R = jnp.searchsorted(cumulative_M, strata_R * cumulative_M[-1], side="right")
    blocks_R = ascending_M[jnp.minimum(places_R, mass_M.size - 1)]
    tokens_R = jax.random.categorical(token_key, logits_MB[blocks_R], mode="high")
    return jnp.sort(blocks_R * size + tokens_R)


def _unique(ids_NR: Array) -> Payload:
    """Return the unique ids of ascending ids, most frequent first, and their counts, padded with zeros."""
    first_NR = jnp.concatenate([jnp.ones_like(ids_NR[:, :1], bool), ids_NR[:, 1:] != ids_NR[:, :-1]], axis=1)
    run_NR = jnp.cumsum(first_NR, axis=1) - 1  # index of each draw's id among the unique ids
    zeros = jnp.zeros(ids_NR.shape[1], jnp.int32)
    counts_NR = jax.vmap(lambda run: zeros.at[run].add(1))(run_NR)
    unique_NR = jax.vmap(lambda run, ids: zeros.at[run].set(ids))(run_NR, ids_NR)
    order_NR = jnp.argsort(-counts_NR, axis=1)
    sort = lambda x: jnp.take_along_axis(x, order_NR, axis=1)  # noqa: E731
    return {"ids": sort(unique_NR), "counts": sort(counts_NR)}
