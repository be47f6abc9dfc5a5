"""Batches of random examples, built by the layout that training uses."""

from collections.abc import Sequence

import numpy as np

from kd_jax.data.layouts import Bucket, EncoderDecoderLayout, Row
from kd_jax.tasks.base import Encoded
from kd_jax.types import Batch

FIRST_WORD = 4  # ids below it are the tokeniser's own


def random_examples(seed: int, lengths: Sequence[tuple[int, int]], vocab_size: int) -> list[Encoded]:
    """One example for each (prompt length, completion length); all targets count."""
    rng = np.random.default_rng(seed)
    draw = lambda length: rng.integers(FIRST_WORD, vocab_size, length).astype(np.int32)  # noqa: E731
    return [Encoded(draw(prompt), draw(completion), np.ones(completion, bool)) for prompt, completion in lengths]


def to_batch(examples: Sequence[Encoded], bucket: tuple[int, int] | None = None) -> Batch:
    """One row per example, without a teacher's payload; padded to the bucket, or to the longest of each side."""
    longest = [max(map(len, side)) for side in list(zip(*examples, strict=True))[:2]]
    rows = [Row(i, encoded, 1.0, {}) for i, encoded in enumerate(examples)]
    return EncoderDecoderLayout().batch(rows, len(rows), Bucket(*(bucket or longest)), {})
