"""The teacher's k likeliest next tokens, and exactly what remains."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.losses import divergence
from kd_jax.losses.base import at, logp_at, logp_with_rest, split
from kd_jax.signals.base import Aligned, Tail, check_tail, check_temperature, check_whole, id_dtype
from kd_jax.types import Array, Field, Payload


@dataclasses.dataclass(frozen=True)
class TopK:
    """k ids with their logits and, for each temperature, the log-sum-exp of all others.

    A record holds, per target token, `ids` [k], `logits` [k] less the largest one, and for each
    temperature T `rest_tT`: the log-sum-exp of logits / T outside the k, less the largest one over T.
    Probabilities are exp(logit / T) over their sum with exp(rest), which is Z; the stored distribution
    sums to one by construction, nothing is lost to cancellation, and k = V gives rest = -inf and the
    dense distribution. A smaller k is read out of a larger one by adding what falls away to the rest.

    A logit of -inf marks an id that the teacher did not name, as in a record of fewer than k: both sides count it
    among all others. Where it named none, both sides are the same, and every divergence is 0.

    Attributes:
      k: ids kept, at most the vocabulary's size.
      temperature: T of the teacher's and the student's softmax.
      tail: what becomes of the mass outside the k.
        "bucket": all other tokens are one more outcome on both sides: the student's mass there counts.
        "renormalise": both sides are conditioned on the k; where the student's remaining mass goes is free.
        "zero": the teacher's side is cut off and sums to less than one, the student's stays as it is; for
        divergences weighted by the teacher alone.
      temperatures: further ones that the cache is to be made for.

    Examples:
      >>> signal, logits = TopK(k=1), jnp.log(jnp.asarray([[0.5, 0.25, 0.25]]))
      >>> payload = signal.reduce(logits)
      >>> payload["ids"].tolist(), sorted(payload)
      ([[0]], ['ids', 'logits', 'rest_t1'])
      >>> print(jnp.exp(signal.align(logits, payload, 1.0).teacher_logp_NK))  # token 0, and all others
      [[0.5 0.5]]
    """

    k: int = 32
    temperature: float = 1.0
    tail: Tail = "bucket"
    temperatures: tuple[float, ...] = ()

    name = "topk"
    origin, level, kind = "cache", "logits", "divergence"

    def check(self, vocab_size: int) -> None:
        """Refuses fields out of their ranges.

        Raises:
          KdError: names the field.
        """
        check_whole("k", self.k, 1, vocab_size, f"1 to the vocabulary's {vocab_size} tokens")
        check_tail(self.tail)
        for temperature in (self.temperature, *self.temperatures):
            check_temperature(temperature)

    def supports(self, loss: Callable[..., Array]) -> bool:
        """All divergences; with the tail "zero" those weighted by the teacher, the others being infinite there."""
        return self.tail != "zero" or loss in divergence.TEACHER_WEIGHTED

    def stored_temperatures(self) -> tuple[float, ...]:
        """Every temperature that the cache is made for, ascending."""
        return tuple(sorted({self.temperature, *self.temperatures}))

    def schema(self, vocab_size: int) -> dict[str, Field]:
        """Fields per target token; ids take two bytes where the vocabulary allows it."""
        return self.fields(vocab_size, self.stored_temperatures())

    def reads(self, vocab_size: int) -> dict[str, Field]:
        """Those of the schema's that `align` reads: of the rest none where it is left out."""
        return self.fields(vocab_size, () if self.tail == "renormalise" else (self.temperature,))

    def fields(self, vocab_size: int, temperatures: Iterable[float]) -> dict[str, Field]:
        """A record's, with the rest at these temperatures."""
        rests = {rest_field(temperature): Field((), "float32") for temperature in temperatures}
        return {"ids": Field((self.k,), id_dtype(vocab_size)), "logits": Field((self.k,), "float16")} | rests

    def covering(self, other: "TopK") -> "TopK":
        """The one with the larger k and the temperatures of both; the tail, this one's, is chosen when it is read."""
        temperatures = tuple(sorted({*self.stored_temperatures(), *other.stored_temperatures()}))
        return TopK(max(self.k, other.k), temperatures[0], self.tail, temperatures[1:])

    def reduce(self, logits_NV: Array, key_N: Any = None) -> Payload:
        """Teacher logits [N, V] to {"ids" [N, k], "logits" [N, k], "rest_tT" [N] for every T}; draws nothing."""
        del key_N
        logits_NV = logits_NV.astype(jnp.float32)
        logits_NV -= logits_NV.max(-1, keepdims=True)
        top_NK, ids_NK = jax.lax.top_k(logits_NV, self.k)
        rests = {rest_field(t): split(logits_NV / t, ids_NK)[1] for t in self.stored_temperatures()}
        return {"ids": ids_NK, "logits": top_NK.astype(jnp.float16)} | rests

    def align(self, logits_NV: Array, payload: Payload, temperature: Any) -> Aligned:
        """Log-probabilities of teacher and student on the k ids and, for the tail "bucket", all other tokens.

        Args:
          logits_NV: the student's logits, float [N, V].
          payload: as `reduce` gives it, for this k or a larger one, with this temperature among others.
          temperature: this signal's.

        Returns:
          Aligned, K = k + 1 for "bucket" (the bucket last), else k.
        """
        logits_NV = logits_NV.astype(jnp.float32)
        if not isinstance(temperature, float) or temperature != 1.0:
            logits_NV = logits_NV / temperature
        stored_NX = payload["logits"].astype(jnp.float32) / temperature
        named_NK = stored_NX[:, : self.k] > -jnp.inf
        ids_NK = jnp.where(named_NK, payload["ids"][:, : self.k].astype(jnp.int32), logits_NV.shape[-1])
        if self.tail == "renormalise":
            both = stored_NX[:, : self.k], at(logits_NV, ids_NK)
            return Aligned(*(jax.nn.log_softmax(jnp.where(named_NK.any(-1, keepdims=True), x, 0.0)) for x in both))
        rest_N1 = payload[rest_field(self.temperature)].astype(jnp.float32)[:, None]
        beyond_NX = jnp.concatenate([stored_NX[:, self.k :], rest_N1], axis=-1)
        beyond_N1 = jax.nn.logsumexp(beyond_NX, axis=-1, keepdims=True)
        teacher_NX = jax.nn.log_softmax(jnp.concatenate([stored_NX[:, : self.k], beyond_N1], axis=-1))
        if self.tail == "zero":
            return Aligned(teacher_NX[:, : self.k], *logp_at(logits_NV, ids_NK))
        return Aligned(teacher_NX, *logp_with_rest(logits_NV, ids_NK))


def rest_field(temperature: float) -> str:
    """Names the rest's field at a temperature."""
    return f"rest_t{temperature:g}"
