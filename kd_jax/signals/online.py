"""The teacher in the step: nothing is stored, its logits are made as they are needed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import schedules
from kd_jax.losses import divergence
from kd_jax.losses.base import logp_at, logp_with_rest
from kd_jax.schedules import Schedule
from kd_jax.signals.base import Aligned, Tail, check_tail, check_whole
from kd_jax.types import Array, Payload


@dataclasses.dataclass(frozen=True)
class Online:
    """The whole distribution of a teacher that runs beside the student, or its top k on the device.

    The teacher's parameters are an argument of the step that nothing updates or differentiates; its
    logits live in the fused head's chunks, as the student's do.

    Attributes:
      k: 0 for the whole vocabulary; else the divergence is taken on the k likeliest tokens, as by TopK but
        without rounding.
      temperature: T of both softmaxes, or a Schedule over the steps.
      tail: as TopK's, where k is not 0.

    Examples:
      >>> student, teacher = jnp.zeros((1, 4)), jnp.asarray([[0.0, 0.0, -jnp.inf, -jnp.inf]])
      >>> aligned = Online().align(student, {"logits": teacher}, 1.0)
      >>> print(jnp.exp(aligned.teacher_logp_NK), jnp.exp(aligned.student_logp_NK))
      [[0.5 0.5 0.  0. ]] [[0.25 0.25 0.25 0.25]]
    """

    k: int = 0
    temperature: float | Schedule = 1.0
    tail: Tail = "bucket"

    name = "online"
    origin, level, kind = "step", "logits", "divergence"

    def check(self, vocab_size: int) -> None:
        """Refuses fields out of their ranges.

        Raises:
          KdError: names the field.
        """
        check_whole("k", self.k, 0, vocab_size, f"0 (all) to the vocabulary's {vocab_size} tokens")
        check_tail(self.tail)
        schedules.check(self.temperature, "signal.temperature", 1e-3)

    def supports(self, loss: Callable[..., Array]) -> bool:
        """All divergences; with k and the tail "zero" those weighted by the teacher."""
        return not self.k or self.tail != "zero" or loss in divergence.TEACHER_WEIGHTED

    def schema(self, vocab_size: int) -> None:
        """None: nothing is stored."""

    def reads(self, vocab_size: int) -> None:
        """None, as the schema."""

    def covering(self, other: "Online") -> "Online":
        """Itself: there is no cache to share."""
        return self

    def reduce(self, logits_NV: Array, key_N: Any = None) -> Payload:
        """The logits themselves, which live in the step alone."""
        return {"logits": logits_NV}

    def align(self, logits_NV: Array, payload: Payload, temperature: Any) -> Aligned:
        """Log-probabilities of teacher and student: K = V, or as TopK's where k is not 0.

        Args:
          logits_NV: the student's logits, float [N, V].
          payload: {"logits": the teacher's, float [N, V]}.
          temperature: a number, or traced.
        """
        student_NV, teacher_NV = (x.astype(jnp.float32) / temperature for x in (logits_NV, payload["logits"]))
        if not self.k:
            return Aligned(jax.nn.log_softmax(teacher_NV), jax.nn.log_softmax(student_NV))
        teacher_NK, ids_NK = jax.lax.top_k(teacher_NV, self.k)
        if self.tail == "renormalise":
            student_NK = jnp.take_along_axis(student_NV, ids_NK, -1)
            return Aligned(jax.nn.log_softmax(teacher_NK), jax.nn.log_softmax(student_NK))
        on_support = logp_at if self.tail == "zero" else logp_with_rest
        return Aligned(on_support(teacher_NV, ids_NK)[0], on_support(student_NV, ids_NK)[0])
