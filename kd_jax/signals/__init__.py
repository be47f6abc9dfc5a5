"""Signals: how much of the teacher's knowledge a term uses."""

from kd_jax.signals.features import AttentionRelations, HiddenStates
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK

__all__ = ["AttentionRelations", "HiddenStates", "Online", "Sampled", "TopK"]
