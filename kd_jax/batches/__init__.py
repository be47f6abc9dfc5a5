"""Encoded examples and signals on disk, and padded batches of them."""
