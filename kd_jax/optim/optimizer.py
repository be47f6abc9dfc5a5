"""Schedule, decay mask and update rule, all from optax."""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from kd_jax.config import MAX_STEPS, check_count, is_count, is_number
from kd_jax.errors import KdError
from kd_jax.optim.skipped_updates import skip_outliers
from kd_jax.types import Params

Decay = Literal["cosine", "rsqrt", "constant"]

RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {  # field -> expected, and its test
    "learning_rate": ("a number greater than 0", lambda x: x > 0),
    "final_fraction": ("a number in [0, 1]", lambda x: 0 <= x <= 1),
    "beta1": ("a number in [0, 1)", lambda x: 0 <= x < 1),
    "beta2": ("a number in [0, 1)", lambda x: 0 <= x < 1),
    "eps": ("a number greater than 0", lambda x: x > 0),
    "weight_decay": ("a number of at least 0", lambda x: x >= 0),
    "clip_norm": ("a number greater than 0 (1e9 for no clipping)", lambda x: x > 0),
    "spike": ("a number greater than 1, or 0 for no limit", lambda x: x > 1 or x == 0),
}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up and clipping.

    Attributes:
      learning_rate: the peak, reached after the warm-up.
      warmup: number of updates of linear warm-up.
      schedule: after the warm-up "cosine" to final_fraction of the peak over the run, "rsqrt" as
        peak * sqrt(warmup / step), or "constant".
      final_fraction: where the cosine ends, as a fraction of the peak, in [0, 1].
      beta1: decay of Adam's first moment, in [0, 1).
      beta2: decay of Adam's second moment, in [0, 1).
      eps: Adam's epsilon.
      weight_decay: decoupled weight decay, on matrices only.
      clip_norm: largest global norm of a gradient.
      spike: skip updates whose gradient's norm is more than this multiple of its running mean; 0 to skip only gradients
        that are not finite. See kd_jax.optim.skipped_updates.
      max_skipped_updates: the run stops if more updates are skipped, counted from its last start.

    References:
      Loshchilov and Hutter 2017, arXiv 1711.05101 (AdamW); Vaswani et al. 2017, arXiv 1706.03762, eq. 3 (rsqrt).

    Examples:
      >>> rate = Optimizer(learning_rate=1.0, warmup=2, schedule="cosine", final_fraction=0.0).rate(steps=4)
      >>> [round(float(rate(n)), 3) for n in range(4)]
      [0.5, 1.0, 0.5, 0.0]
    """

    learning_rate: float = 1e-3
    warmup: int = 200
    schedule: Decay = "cosine"
    final_fraction: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    spike: float = 0.0
    max_skipped_updates: int = 10

    def check(self, steps: int) -> None:
        """Check the ranges of all fields for a run."""
        values = dataclasses.asdict(self)
        for field, (expected, is_valid) in RANGES.items():
            if not (is_number(values[field]) and is_valid(values[field])):
                raise KdError(f"training.optimizer.{field}: expected {expected}, got {values[field]!r}.")
        check_count("training.optimizer.max_skipped_updates", self.max_skipped_updates, 0)
        if self.schedule not in get_args(Decay):
            raise KdError(
                f"training.optimizer.schedule: expected one of {', '.join(get_args(Decay))}, got {self.schedule!r}."
            )
        check_count("training.steps", steps, 2, MAX_STEPS)
        if not is_count(self.warmup, 1) or self.warmup >= steps:
            expected = f"an integer in [1, {steps - 1}], less than the {steps} training steps"
            raise KdError(f"training.optimizer.warmup: expected {expected}, got {self.warmup!r}.")

    def rate(self, steps: int) -> optax.Schedule:
        r"""Return the schedule of the learning rate.

        .. math:: \eta_n = \eta \min(n / w, 1) \cdot d(n), \quad n = 1, 2, \ldots

        with the peak eta and w updates of warm-up. After them d(n) = f + (1 - f) (1 + cos(pi (n - w) / (steps - w))) /
        2 for the cosine to the fraction f, sqrt(w / n) for rsqrt, and 1 for a constant rate.

        Args:
          steps: updates (not microbatches) of the whole run.

        Returns:
          Function of the update's number, from 0 (n - 1 above, as optax counts), to its rate, float32.

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
        # Updates count from 1 in the formula, so the first one has a rate greater than 0.
        joined = optax.join_schedules([warm, after], [self.warmup])
        return lambda n: joined(jnp.asarray(n + 1, jnp.float32))

    def build(self, steps: int) -> optax.GradientTransformation:
        """Return the optax chain for a run: skipping of outliers, clipping by the global norm, AdamW.

        `steps` counts updates (not microbatches) of the whole run; 0 gives a transformation without state.
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
        return skip_outliers(optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw), self.spike)


def decay_mask(params: Params) -> Params:
    """Return True for each matrix, and False for scales and biases, also those of stacked layers.

    Examples:
      >>> decay_mask({"kernel": jnp.ones((2, 3)), "scale": jnp.ones(3), "decoder": {"bias": jnp.ones((4, 3))}})
      {'decoder': {'bias': False}, 'kernel': True, 'scale': False}
    """
    is_vector = lambda path: jax.tree_util.keystr(path).endswith(("scale']", "bias']"))  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: x.ndim > 1 and not is_vector(path), params)
