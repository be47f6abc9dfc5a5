"""The teacher in the step: nothing is stored, its logits are made as they are needed."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from kd_jax.errors import KdError
from kd_jax.losses import divergence, support
from kd_jax.losses.support import Aligned
from kd_jax.optim.ramp import Ramp
from kd_jax.types import Array, Field, Payload


@dataclasses.dataclass(frozen=True)
class Online:
    """The whole distribution of a teacher that runs beside the student, or its top k on the device.

    The teacher's parameters are an argument of the step that nothing updates or differentiates; its
    logits live in the fused head's chunks, as the student's do.

    Attributes:
      k: 0 for the whole vocabulary; else the divergence is taken on the k likeliest tokens, as by TopK but
        without rounding.
      temperature: T of both softmaxes, or a Ramp over the steps.
      tail: as TopK's, where k is not 0.
    """

    k: int = 0
    temperature: float | Ramp = 1.0
    tail: Literal["bucket", "renormalise", "zero"] = "bucket"

    name = "online"

    def supports(self, loss: Callable[..., Array]) -> bool:
        """All divergences; with k and the tail "zero" those weighted by the teacher."""
        return not self.k or self.tail != "zero" or loss in divergence.TEACHER_WEIGHTED

    def schema(self, vocab_size: int) -> dict[str, Field] | None:
        """None: nothing is stored.

        Raises:
          KdError: if k or the tail is out of range.
        """
        if not 0 <= self.k <= vocab_size:
            raise KdError(f"signal.k: {self.k}; wanted 0 (all) to the vocabulary's {vocab_size} tokens")
        if self.tail not in ("bucket", "renormalise", "zero"):
            raise KdError(f"signal.tail: {self.tail!r}; wanted bucket, renormalise or zero")
        return None

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
        where = support.at if self.tail == "zero" else support.with_rest
        return Aligned(where(teacher_NV, ids_NK)[0], where(student_NV, ids_NK)[0])
