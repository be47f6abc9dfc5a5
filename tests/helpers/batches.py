"""Batches of random examples, built by the layouts that training uses."""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from kd_jax.batches.layouts import Bucket, EncoderDecoderLayout, Layout, Segment
from kd_jax.signals.topk import TopK
from kd_jax.tasks.base import Encoded
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.types import Batch

FIRST_WORD = 4  # smaller ids are special tokens
ENCODER_DECODER = EncoderDecoderLayout(START)


def random_examples(seed: int, lengths: Sequence[tuple[int, int]], vocab_size: int) -> list[Encoded]:
    """Return one example for each (prompt length, completion length); the whole completion counts."""
    rng = np.random.default_rng(seed)
    draw = lambda length: rng.integers(FIRST_WORD, vocab_size, length).astype(np.int32)  # noqa: E731
    pairs = [(draw(prompt), draw(completion)) for prompt, completion in lengths]
    return [Encoded(p, c, np.arange(len(p) + len(c)) >= len(p)) for p, c in pairs]


def to_batch(
    examples: Sequence[Encoded], bucket: tuple[int, int] | None = None, layout: Layout = ENCODER_DECODER
) -> Batch:
    """Return one example per row, without a payload, padded to the bucket or to the longest of each side."""
    longest = [max(map(len, side)) for side in list(zip(*examples, strict=True))[:2]]
    rows = [[Segment(i, encoded, 1.0, {})] for i, encoded in enumerate(examples)]
    return layout.batch(rows, len(rows), Bucket(*(bucket or longest)), {})


def segments_with_signal(
    seed: int, longest: tuple[int, int], count: int, signal: TopK, vocab_size: int
) -> list[Segment]:
    """Return examples of different lengths with the signal of a random teacher.

    The first targets of two in three completions do not count, and no target of example 3; weights are 0.5 to 1.5.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, np.add(longest, 1), (count, 2)).tolist()
    segments = []
    for i, (prompt, completion, _) in enumerate(random_examples(seed, lengths, vocab_size)):
        counts = (np.arange(len(prompt) + len(completion)) >= len(prompt) + i % 3) & (i != 3)
        record = signal.reduce(jnp.asarray(rng.normal(size=(counts.sum(), vocab_size)), jnp.float32))
        segments.append(Segment(i, Encoded(prompt, completion, counts), 0.5 + i % 5 / 4, {signal.name: record}))
    return segments


def rows_of(segments: Sequence[Segment], sizes: Iterable[int]) -> list[list[Segment]]:
    """Return rows with so many segments each, in their order."""
    remaining = iter(segments)
    return [[next(remaining) for _ in range(size)] for size in sizes]
