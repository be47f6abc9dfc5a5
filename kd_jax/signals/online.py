"""The full distribution of a teacher in the training step."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kd_jax import schedules
from kd_jax.losses import divergence
from kd_jax.losses.base import Loss, LossKind
from kd_jax.losses.support import logp_at, logp_with_rest
from kd_jax.schedules import ScalarOrSchedule
from kd_jax.signals.base import Aligned, Level, Origin, Tail, check_integer, check_tail
from kd_jax.types import Array, Payload


@dataclasses.dataclass(frozen=True)
class Online:
    """The teacher's full distribution, or its top k, computed in the training step.

    The teacher's parameters are an argument of the step and are neither updated nor differentiated. Its logits exist
    only in the chunks of the fused head, as the student's.

    Attributes:
      k: 0 for the whole vocabulary; else the support is the teacher's k most likely tokens, as for TopK but without
        rounding.
      temperature: T of both softmaxes: a number, a Schedule, or a function of the step.
      tail: the tail rule if k is not 0, as for TopK.

    Examples:
      >>> student, teacher = jnp.zeros((1, 4)), jnp.asarray([[0.0, 0.0, -jnp.inf, -jnp.inf]])
      >>> aligned = Online().align(student, {"logits": teacher}, 1.0)
      >>> print(jnp.exp(aligned.teacher_logp_NK), jnp.exp(aligned.student_logp_NK))
      [[0.5 0.5 0.  0. ]] [[0.25 0.25 0.25 0.25]]
    """

    k: int = 0
    temperature: ScalarOrSchedule = 1.0
    tail: Tail = "bucket"

    name = "online"
    origin: ClassVar[Origin] = "step"
    level: ClassVar[Level] = "logits"
    loss_kind: ClassVar[LossKind] = "divergence"

    def check(self, vocab_size: int) -> None:
        """Check the ranges of all fields."""
        check_integer("k", self.k, 0, vocab_size)
        check_tail(self.tail)
        schedules.check(self.temperature, "signal.temperature", 1e-3)

    def supports(self, loss: Loss) -> bool:
        """Return True for divergences; with k and the tail "zero" only if the teacher weights the loss."""
        return not self.k or self.tail != "zero" or loss in divergence.TEACHER_WEIGHTED

    def schema(self, vocab_size: int) -> None:
        """Return None: nothing is cached."""

    def required_schema(self, vocab_size: int) -> None:
        """Return None: nothing is cached."""

    def merge(self, other: "Online") -> "Online":
        """Return this signal: there is no cache to share."""
        return self

    def reduce(self, logits_NV: Array, key_N: Any = None) -> Payload:
        """Return the logits themselves."""
        return {"logits": logits_NV}

    def align(self, logits_NV: Array, payload: Payload, temperature: Any) -> Aligned:
        """Compute the log-probabilities of teacher and student.

        Returns:
          Aligned with K = V, or as TopK if k is not 0.
        """
        student_NV, teacher_NV = (x.astype(jnp.float32) / temperature for x in (logits_NV, payload["logits"]))
        if not self.k:
            return Aligned(jax.nn.log_softmax(teacher_NV), jax.nn.log_softmax(student_NV))
        teacher_NK, ids_NK = jax.lax.top_k(teacher_NV, self.k)
        if self.tail == "renormalise":
            student_NK = jnp.take_along_axis(student_NV, ids_NK, -1)
            return Aligned(jax.nn.log_softmax(teacher_NK), jax.nn.log_softmax(student_NK))
        logp = logp_at if self.tail == "zero" else logp_with_rest
        return Aligned(logp(teacher_NV, ids_NK)[0], logp(student_NV, ids_NK)[0])
