"""Schedule, decay mask and update rule, all from optax."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from kd_jax.config import is_count, is_number
from kd_jax.errors import KdError
from kd_jax.optim.skipped_updates import without_outliers
from kd_jax.types import Params

Schedule = Literal["cosine", "rsqrt", "constant"]

RANGES = {  # field -> what is wanted, and whether a number is that
    "learning_rate": ("a number more than 0", lambda x: x > 0),
    "final_fraction": ("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "beta1": ("a number from 0 to less than 1", lambda x: 0 <= x < 1),
    "beta2": ("a number from 0 to less than 1", lambda x: 0 <= x < 1),
    "eps": ("a number more than 0", lambda x: x > 0),
    "weight_decay": ("a number of at least 0", lambda x: x >= 0),
    "clip_norm": ("a number more than 0 (1e9 for no clipping)", lambda x: x > 0),
    "spike": ("a number more than 1, or 0 for no limit", lambda x: x > 1 or x == 0),
}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up and clipping.

    Attributes:
      learning_rate: the peak, reached after warm-up.
      warmup: steps of linear warm-up.
      schedule: after the warm-up "cosine" to final_fraction of the peak over the run, "rsqrt" as
        peak * sqrt(warmup / step), or "constant".
      final_fraction: where the cosine ends, as a fraction of the peak, in [0, 1].
      beta1, beta2, eps: of Adam; the betas in [0, 1).
      weight_decay: decoupled, on matrices only.
      clip_norm: largest global norm of a gradient.
      spike: an update whose gradient's norm is more than so many times the usual one is left out; 0 to leave out
        only what is not finite. See kd_jax.optim.skipped_updates.
      max_skipped_updates: updates that may be left out, from one start of the run to the next, before it stops.

    References:
      Loshchilov and Hutter 2017, arXiv 1711.05101 (AdamW); Vaswani et al. 2017, arXiv 1706.03762, eq. 3 (rsqrt).

    Examples:
      >>> rate = Optimizer(learning_rate=1.0, warmup=2, schedule="cosine", final_fraction=0.0).rate(steps=4)
      >>> [round(float(rate(n)), 3) for n in range(4)]
      [0.5, 1.0, 0.5, 0.0]
    """

    learning_rate: float = 1e-3
    warmup: int = 200
    schedule: Schedule = "cosine"
    final_fraction: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    spike: float = 0.0
    max_skipped_updates: int = 10

    def check(self, steps: int) -> None:
        """Refuses, before any compute, what could not train over a run of `steps` updates.

        Raises:
          KdError: for a value out of its range, a schedule that there is not, or a warm-up as long as the run;
            names the field.
        """
        values, defaults = dataclasses.asdict(self), dataclasses.asdict(Optimizer())
        for field, (wanted, holds) in RANGES.items():
            if not (is_number(values[field]) and holds(values[field])):
                raise KdError(f"optimizer.{field}: {values[field]!r}; wanted {wanted}, such as {defaults[field]}")
        if not is_count(self.max_skipped_updates, 0):
            raise KdError(f"optimizer.max_skipped_updates: {self.max_skipped_updates!r}; wanted a whole number of at least 0")
        if self.schedule not in get_args(Schedule):
            raise KdError(f"optimizer.schedule: {self.schedule!r}; wanted one of {', '.join(get_args(Schedule))}")
        if not is_count(steps, 2):
            raise KdError(f"training.steps: {steps!r}; wanted a whole number of at least 2: one to warm up, one after")
        if not is_count(self.warmup, 1) or self.warmup >= steps:
            raise KdError(
                f"optimizer.warmup: {self.warmup!r}; wanted a whole number from 1 to {steps - 1}, fewer than the "
                f"{steps} training steps"
            )

    def rate(self, steps: int) -> optax.Schedule:
        """The learning rate of each update.

        .. math:: \\eta_n = \\eta \\min(n / w, 1) \\cdot d(n), \\quad n = 1, 2, \\ldots

        with the peak eta, w steps of warm-up, and after them d(n) = f + (1 - f) (1 + cos(pi (n - w) / (steps - w))) / 2
        for the cosine to the fraction f, sqrt(w / n) for rsqrt, 1 for a constant rate.

        Args:
          steps: updates (not microbatches) of the whole run.

        Returns:
          Number of the update, from 0 (n - 1 above, as optax counts), to its rate, float32.

        Raises:
          KdError: as `check`.

        Examples:
          >>> rate = Optimizer(learning_rate=0.5, warmup=2, schedule="rsqrt").rate(steps=100)
          >>> [float(rate(n)) for n in (0, 1, 7)]
          [0.25, 0.5, 0.25]
        """
        self.check(steps)
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
        """The optax chain for a run of `steps` updates: outliers left out, clipping by the global norm, AdamW.

        Without a step there is nothing to remember: no state.

        Raises:
          KdError: as `check`.
        """
        if not steps:
            return optax.set_to_zero()
        adamw = optax.adamw(
            self.rate(steps),
            b1=self.beta1,
            b2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=decay_mask,
        )
        return without_outliers(optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw), self.spike)


def decay_mask(params: Params) -> Params:
    """True for matrices; norms' scales and biases are not decayed, nor are those of layers that lie stacked.

    Examples:
      >>> decay_mask({"kernel": jnp.ones((2, 3)), "scale": jnp.ones(3), "decoder": {"bias": jnp.ones((4, 3))}})
      {'decoder': {'bias': False}, 'kernel': True, 'scale': False}
    """
    vector = lambda path: jax.tree_util.keystr(path).endswith(("scale']", "bias']"))  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, p: p.ndim > 1 and not vector(path), params)
