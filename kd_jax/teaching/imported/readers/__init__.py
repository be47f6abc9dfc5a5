"""Readers of stored log-probabilities, one for each format."""
