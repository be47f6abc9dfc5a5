"""Optimisers, from optax."""

from kd_jax.optim.optimizer import Optimizer

__all__ = ["Optimizer"]
