"""Optimisers, from optax."""
