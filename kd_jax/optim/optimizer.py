"""Schedule, decay mask and update rule, all from optax."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from kd_jax.errors import KdError
from kd_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up and clipping.

    Attributes:
      learning_rate: the peak, reached after warm-up.
      warmup: steps of linear warm-up.
      schedule: after the warm-up "cosine" to final_fraction of the peak over the run, "rsqrt" as
        peak * sqrt(warmup / step), or "constant".
      final_fraction: where the cosine ends, as a fraction of the peak.
      beta1, beta2, eps: of Adam.
      weight_decay: decoupled, on matrices only.
      clip_norm: largest global norm of a gradient.
    """

    learning_rate: float = 1e-3
    warmup: int = 200
    schedule: Literal["cosine", "rsqrt", "constant"] = "cosine"
    final_fraction: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def rate(self, steps: int) -> optax.Schedule:
        """update number -> learning rate, over a run of `steps` updates (not microbatches).

        Raises:
          KdError: for a rate or a number of steps that is not positive, or a warm-up longer than the run.
        """
        if not 0 < self.learning_rate < float("inf"):
            raise KdError(f"optimizer.learning_rate: {self.learning_rate}; wanted a positive number")
        if not 0 < self.warmup < steps:
            raise KdError(f"optimizer.warmup: {self.warmup}; wanted 1 to fewer than the {steps} training steps")
        warm = optax.linear_schedule(0.0, self.learning_rate, self.warmup)
        after = {
            "cosine": optax.cosine_decay_schedule(self.learning_rate, steps - self.warmup, self.final_fraction),
            "rsqrt": lambda n: self.learning_rate * (self.warmup / (n + self.warmup)) ** 0.5,
            "constant": optax.constant_schedule(self.learning_rate),
        }[self.schedule]
        # The first update already moves: it uses rate(1).
        joined = optax.join_schedules([warm, after], [self.warmup])
        return lambda n: joined(jnp.asarray(n + 1, jnp.float32))

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` updates."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(
                self.rate(steps), self.beta1, self.beta2, self.eps, weight_decay=self.weight_decay, mask=decay_mask
            ),
        )


def decay_mask(params: Params) -> Params:
    """True for matrices; norms' scales and biases are not decayed."""
    return jax.tree.map(lambda p: p.ndim > 1, params)
