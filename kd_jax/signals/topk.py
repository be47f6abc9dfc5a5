"""The teacher's k likeliest next tokens, and exactly what remains."""

import dataclasses

import jax
import jax.numpy as jnp

from kd_jax.errors import KdError
from kd_jax.types import Array, Field, Payload


@dataclasses.dataclass(frozen=True)
class TopK:
    """k ids with their logits and the log-sum-exp of all others.

    A record holds, per target token, `ids` [k], `logits` [k] less the largest one, and `rest`: the
    log-sum-exp of all logits outside the k at the temperature, less the largest one too. Probabilities
    are exp(logit / T) over their sum with exp(rest), so the stored distribution sums to one by
    construction, nothing is lost to cancellation, and k = V gives rest = -inf and the dense distribution.
    A smaller k is read out of a larger one by adding what falls away to the rest.

    Attributes:
      k: ids kept, at most the vocabulary's size.
      temperature: T of the teacher's and the student's softmax.
    """

    k: int = 32
    temperature: float = 1.0

    @property
    def name(self) -> str:
        return f"topk_t{self.temperature:g}"

    def schema(self, vocab_size: int) -> dict[str, Field]:
        """Fields per target token; ids take two bytes where the vocabulary allows it.

        Raises:
          KdError: if k or the temperature is out of range.
        """
        if not 1 <= self.k <= vocab_size:
            raise KdError(f"signal.k: {self.k}; wanted 1 to the vocabulary's {vocab_size} tokens")
        if not 0 < self.temperature < float("inf"):
            raise KdError(f"signal.temperature: {self.temperature}; wanted a positive number")
        ids = "uint16" if vocab_size <= 2**16 else "uint32"
        return {"ids": Field((self.k,), ids), "logits": Field((self.k,), "float16"), "rest": Field((), "float32")}

    def covering(self, other: "TopK") -> "TopK":
        """The one with the larger k; the names already agree on the temperature."""
        return max(self, other, key=lambda signal: signal.k)

    def reduce(self, logits_NV: Array) -> Payload:
        """Teacher logits [N, V] to {"ids" [N, k], "logits" [N, k], "rest" [N]}."""
        logits_NV = logits_NV.astype(jnp.float32)
        logits_NV -= logits_NV.max(-1, keepdims=True)
        top_NK, ids_NK = jax.lax.top_k(logits_NV, self.k)
        rest_N = jax.nn.logsumexp(_without(logits_NV, ids_NK) / self.temperature, axis=-1)
        return {"ids": ids_NK, "logits": top_NK.astype(jnp.float16), "rest": rest_N}

    def align(self, logits_NV: Array, payload: Payload) -> tuple[Array, Array]:
        """Log-probabilities of teacher and student on the k ids and one bucket for all other tokens.

        Args:
          logits_NV: the student's logits, float [N, V].
          payload: as `reduce` gives it, for this k or a larger one.

        Returns:
          (teacher_logp, student_logp), float32 [N, k + 1]; the bucket stands last.
        """
        logits_NV = logits_NV.astype(jnp.float32) / self.temperature
        ids_NK = payload["ids"][:, : self.k].astype(jnp.int32)
        stored_NX = payload["logits"].astype(jnp.float32) / self.temperature
        beyond_NX = jnp.concatenate([stored_NX[:, self.k :], payload["rest"].astype(jnp.float32)[:, None]], axis=-1)
        return (
            jax.nn.log_softmax(_with_rest(stored_NX[:, : self.k], beyond_NX), axis=-1),
            jax.nn.log_softmax(
                _with_rest(jnp.take_along_axis(logits_NV, ids_NK, -1), _without(logits_NV, ids_NK)), axis=-1
            ),
        )


def _without(logits_NV: Array, ids_NK: Array) -> Array:
    """The logits with -inf at the ids; summing what is left keeps digits that 1 - sum(p) would lose."""
    return jnp.put_along_axis(logits_NV, ids_NK, -jnp.inf, axis=-1, inplace=False)


def _with_rest(logits_NK: Array, rest_NX: Array) -> Array:
    """[N, K + 1]: the logits, and the log-sum-exp of the others as one more."""
    return jnp.concatenate([logits_NK, jax.nn.logsumexp(rest_NX, axis=-1, keepdims=True)], axis=-1)
