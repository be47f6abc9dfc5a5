"""The examples of a split as text, and the outcome of texts and likelihoods on them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.artifacts.manifest import Folder, read_lines
from kd_jax.tasks.base import Task
from kd_jax.tasks.metrics import Outcome
from kd_jax.types import Example


class EvalSet(NamedTuple):
    """A split's examples as text, and the ascending numbers of those that texts are generated for."""

    examples: Sequence[Example]
    text_indices: Sequence[int]

    @classmethod
    def load(cls, folder: Folder, split: str, count: int) -> "EvalSet":
        """Read a prepared split; texts are generated for `count` evenly spaced examples, 0 for all."""
        examples = read_lines(folder.file(f"{split}.jsonl"))
        chosen = np.linspace(0, len(examples) - 1, min(count or len(examples), len(examples))).astype(int)
        return cls(examples, sorted(set(chosen.tolist())))

    def text_outcome(self, task: Task, texts: Sequence[str]) -> Outcome:
        """Return the outcome of generated texts, one for each of `text_indices`."""
        examples = [self.examples[i] for i in self.text_indices]
        return Outcome(examples, texts, [task.references_of(example) for example in examples])

    def likelihood_outcome(self, task: Task, nll_N: np.ndarray, tokens_N: np.ndarray) -> Outcome:
        """Return the outcome of likelihoods of all examples, without texts."""
        return Outcome(self.examples, [], [task.references_of(example) for example in self.examples], nll_N, tokens_N)
