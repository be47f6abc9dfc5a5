"""Decoding: pure, jittable functions over a model's `prefill` and `extend`."""

from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.sampling import sample
from kd_jax.decoding.speculative import speculative

__all__ = ["beam_search", "greedy", "sample", "speculative"]
