"""The teacher's k most likely next tokens and the exact mass of all others."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kd_jax.losses import divergence
from kd_jax.losses.base import Loss, LossKind
from kd_jax.losses.support import logits_at, logits_with_rest, logp_at, logp_with_rest
from kd_jax.signals.base import Aligned, Level, Origin, Tail, check_integer, check_tail, check_temperature, id_dtype
from kd_jax.types import Array, Field, Payload


@dataclasses.dataclass(frozen=True)
class TopK:
    """k ids with their logits and, for each temperature, the log-sum-exp of all other logits.

    A cached record holds, per target token, `ids` [k], `logits` [k] minus the largest logit, and `rest_tT` for each
    temperature T: the log-sum-exp of logits / T outside the k ids, minus the largest over T.

    Probabilities are exp(logit / T) / Z with Z = sum exp(logit / T) + exp(rest). They sum to one by construction,
    without cancellation. k = V gives rest = -inf and the full distribution. A smaller k can be read from a larger one:
    the other ids are added to the rest.

    A logit of -inf marks an id that the teacher did not name, as in a record of fewer than k ids. Both sides count it
    among the other tokens. If the teacher named none, both sides are equal and every divergence is 0.

    Attributes:
      k: number of ids, at most the vocabulary's size.
      temperature: T of the teacher's and the student's softmax.
      tail: the tail rule, for the probability outside the k ids.
        "bucket": all other tokens are one more outcome on both sides, so the student's mass there counts.
        "renormalise": both sides are conditioned on the k ids, so the student's mass elsewhere is free.
        "zero": the teacher's side is cut off and sums to less than one, the student's is not changed; for divergences
        that the teacher's probabilities weight.
      temperatures: further temperatures to write into the cache.

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
    origin: ClassVar[Origin] = "cache"
    level: ClassVar[Level] = "logits"
    loss_kind: ClassVar[LossKind] = "divergence"

    def check(self, vocab_size: int) -> None:
        """Check the ranges of all fields."""
        check_integer("k", self.k, 1, vocab_size)
        check_tail(self.tail)
        for temperature in (self.temperature, *self.temperatures):
            check_temperature(temperature)

    def supports(self, loss: Loss) -> bool:
        """Return True for divergences; with the tail "zero" only if the teacher weights the loss."""
        return self.tail != "zero" or loss in divergence.TEACHER_WEIGHTED

    def stored_temperatures(self) -> tuple[float, ...]:
        """Return all temperatures in the cache, ascending."""
        return tuple(sorted({self.temperature, *self.temperatures}))

    def schema(self, vocab_size: int) -> dict[str, Field]:
        """Return the cached fields per target token."""
        return self.fields(vocab_size, self.stored_temperatures())

    def required_schema(self, vocab_size: int) -> dict[str, Field]:
        """Return the cached fields that `align` reads; the tail "renormalise" needs no rest."""
        return self.fields(vocab_size, () if self.tail == "renormalise" else (self.temperature,))

    def fields(self, vocab_size: int, temperatures: Iterable[float]) -> dict[str, Field]:
        """Return the fields of a record with the rest at these temperatures."""
        rests = {rest_field(temperature): Field((), "float32") for temperature in temperatures}
        return {"ids": Field((self.k,), id_dtype(vocab_size)), "logits": Field((self.k,), "float16")} | rests

    def merge(self, other: "TopK") -> "TopK":
        """Return a signal with the larger k, the temperatures of both, and this one's tail (the cache has none)."""
        temperatures = tuple(sorted({*self.stored_temperatures(), *other.stored_temperatures()}))
        return TopK(max(self.k, other.k), temperatures[0], self.tail, temperatures[1:])

    def reduce(self, logits_NV: Array, key_N: Any = None) -> Payload:
        """Reduce teacher logits to the k largest and the log-sum-exp of the others.

        Returns:
          {"ids": int32 [N, k], "logits": float16 [N, k], "rest_tT": float32 [N] for each temperature T}.
        """
        del key_N
        logits_NV = logits_NV.astype(jnp.float32)
        logits_NV -= logits_NV.max(-1, keepdims=True)
        top_NK, ids_NK = jax.lax.top_k(logits_NV, self.k)
        rests = {rest_field(t): logits_with_rest(logits_NV / t, ids_NK)[1] for t in self.stored_temperatures()}
        return {"ids": ids_NK, "logits": top_NK.astype(jnp.float16)} | rests

    def align(self, logits_NV: Array, payload: Payload, temperature: Any) -> Aligned:
        """Compute the log-probabilities of teacher and student on the support. The cache may have a larger k.

        Returns:
          Aligned with K = k + 1 for the tail "bucket" (all other tokens last), else K = k.
        """
        logits_NV = logits_NV.astype(jnp.float32)
        if not isinstance(temperature, float) or temperature != 1.0:
            logits_NV = logits_NV / temperature
        stored_NX = payload["logits"].astype(jnp.float32) / temperature
        top_NK, others_NX = stored_NX[:, : self.k], stored_NX[:, self.k :]
        is_named_NK = top_NK > -jnp.inf
        ids_NK = jnp.where(is_named_NK, payload["ids"][:, : self.k].astype(jnp.int32), logits_NV.shape[-1])
        if self.tail == "renormalise":
            both = top_NK, logits_at(logits_NV, ids_NK)
            return Aligned(*(jax.nn.log_softmax(jnp.where(is_named_NK.any(-1, keepdims=True), x, 0.0)) for x in both))
        rest_N1 = payload[rest_field(self.temperature)].astype(jnp.float32)[:, None]
        rest_N1 = jax.nn.logsumexp(jnp.concatenate([others_NX, rest_N1], axis=-1), axis=-1, keepdims=True)
        teacher_NX = jax.nn.log_softmax(jnp.concatenate([top_NK, rest_N1], axis=-1))
        if self.tail == "zero":
            return Aligned(teacher_NX[:, : self.k], *logp_at(logits_NV, ids_NK))
        return Aligned(teacher_NX, *logp_with_rest(logits_NV, ids_NK))


def rest_field(temperature: float) -> str:
    """Return the name of the rest's field at a temperature.

    Examples:
      >>> rest_field(2.0)
      'rest_t2'
    """
    return f"rest_t{temperature:g}"
