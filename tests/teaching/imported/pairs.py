"""A split of four pairs, and records of its sequences."""

import numpy as np

from kd_jax.batches.layouts import Segment
from kd_jax.tasks.base import Encoded
from kd_jax.teaching.imported.match import SpecialIds
from kd_jax.teaching.imported.readers.base import make_record

SPECIAL = SpecialIds(start=1, eos=2, pad=0)
PAIRS = [([5, 6, 2], [7, 8, 9, 2]), ([6, 2], [7, 8, 9, 2]), ([5, 6, 2], [8, 2]), ([5, 6, 2], [8, 2])]


class Pairs:
    """A split of PAIRS, of which the completions count."""

    def __len__(self):
        return len(PAIRS)

    def read(self, i):
        prompt, completion = (np.asarray(ids, np.int32) for ids in PAIRS[i])
        counts = np.arange(len(prompt) + len(completion)) >= len(prompt)
        return Segment(i, Encoded(prompt, completion, counts), 1.0, {})


def record_of(tokens, targets=None):
    """Return a record whose positions name the token that they predict, and the next id."""
    targets = range(1, len(tokens)) if targets is None else targets
    entries = lambda t: [(tokens[t], -0.1), (tokens[t] + 1, -3.0)] if t < len(tokens) else [(2, -0.2)]  # noqa: E731
    return make_record("f, record 1", tokens, [(t, entries(t)) for t in targets])
