"""Likelihoods of chunks of text, for a teacher with another tokeniser."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kd_jax.losses.base import Loss, LossKind
from kd_jax.signals.base import Aligned, Level, Origin, check_temperature
from kd_jax.types import Array, Payload

INSIDE, END = 1, 2  # a target's place in its chunk; 0 for targets in no chunk
MOST_LIKELY = -1e-6  # log-likelihoods of chunks are at most this, so that the other outcome has a logarithm


@dataclasses.dataclass(frozen=True)
class Chunks:
    r"""The likelihood of each chunk of text, under teacher and student (arXiv 2503.20083).

    A chunk is a smallest part of a text at whose end a token of both tokenisers ends
    (`kd_jax.tokenizers.alignment`). Each side gives it the probability p, the product of those of its own tokens. The
    loss compares the binary outcomes (p^{1/T}, 1 - p^{1/T}): any divergence, such as forward_kl or total_variation.
    With one tokeniser on both sides, each token is a chunk. The term is the mean over chunks, times T: its gradient
    scales as 1 / T.

    The teacher's payload of a target: `logp`, the log-likelihood of the chunk that ends there, and `place`: 1 inside a
    chunk, 2 at its end, 0 for targets in none.

    Attributes:
      temperature: T, the root of the likelihoods.

    Examples:
      >>> payload = {"logp": jnp.log(jnp.array([0.0, 0.81])), "place": jnp.array([1, 2])}
      >>> student_logp = chunk_sums(jnp.log(jnp.array([0.6, 0.6])), payload["place"])  # two tokens: 0.36
      >>> aligned = Chunks().align(student_logp, payload, temperature=2.0)
      >>> [f"{p:.2f}" for p in jnp.exp(jnp.stack(aligned[:2])[:, 1]).reshape(-1)]
      ['0.90', '0.10', '0.60', '0.40']
    """

    temperature: float = 1.0

    name = "chunks"
    origin: ClassVar[Origin] = "cache"
    level: ClassVar[Level] = "chunks"
    loss_kind: ClassVar[LossKind] = "divergence"

    def check(self, vocab_size: int) -> None:
        """Check the temperature."""
        check_temperature(self.temperature)

    def supports(self, loss: Loss) -> bool:
        """Return True: both sides are distributions over two outcomes."""
        return True

    def align(self, student_logp_N: Array, payload: Payload, temperature: Any) -> Aligned:
        """Return the log-probabilities of both outcomes, [N, 2]; they have a meaning where a chunk ends.

        Args:
          student_logp_N: float32, the student's log-likelihood of the chunk of each target.
          payload: the teacher's.
          temperature: a number, or a traced scalar.
        """
        sides = (_outcomes(x.astype(jnp.float32) / temperature) for x in (payload["logp"], student_logp_N))
        return Aligned(*sides)


def chunk_sums(logp_N: Array, place_N: Array) -> Array:
    """Return the sum over the chunk of each target; targets in no chunk count for none.

    Args:
      logp_N: float32, log-probability of each target.
      place_N: int, place of each target in its chunk; a chunk's targets are side by side.

    Examples:
      >>> print(chunk_sums(jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([0, 1, 2, 2])))
      [6. 6. 6. 8.]
    """
    is_end_N = (place_N == END).astype(jnp.int32)
    chunk_N = jnp.cumsum(is_end_N) - is_end_N
    sums = jax.ops.segment_sum(jnp.where(place_N > 0, logp_N, 0.0), chunk_N, num_segments=len(logp_N))
    return sums[chunk_N]


def _outcomes(logp_N: Array) -> Array:
    """Return log p and log(1 - p), [N, 2]."""
    # Both branches are safe for every value, or the gradient would be NaN where the other one is chosen.
    logp_N = jnp.minimum(logp_N, MOST_LIKELY)
    likely_N = logp_N > -jnp.log(2.0)
    near = jnp.log(-jnp.expm1(jnp.where(likely_N, logp_N, -1.0)))
    far = jnp.log1p(-jnp.exp(jnp.where(likely_N, -1.0, logp_N)))
    return jnp.stack([logp_N, jnp.where(likely_N, near, far)], axis=-1)
