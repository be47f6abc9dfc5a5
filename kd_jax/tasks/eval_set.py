"""The examples of a split as text, and the outcome of texts and likelihoods on them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kd_jax.artifacts.manifest import Folder, read_lines
from kd_jax.tasks.base import Task
from kd_jax.tasks.metrics import Metric, Outcome
from kd_jax.types import Example

if TYPE_CHECKING:
    from kd_jax.tokenizers.base import Tokenizer

LOSSLESS = 0.99  # of the references' own score; a round trip below it is reported


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

    def round_trip(self, task: Task, tokenizer: "Tokenizer") -> Outcome:
        """Return the outcome of the references themselves, encoded and decoded: no model can write better ones."""
        references = [task.references_of(self.examples[i])[0] for i in self.text_indices]
        return self.text_outcome(task, [tokenizer.decode(tokenizer.encode(text)) for text in references])

    def likelihood_outcome(self, task: Task, nll_N: np.ndarray, tokens_N: np.ndarray) -> Outcome:
        """Return the outcome of likelihoods of all examples, without texts."""
        return Outcome(self.examples, [], [task.references_of(example) for example in self.examples], nll_N, tokens_N)


def round_trip_score(metric: Metric, outcome: Outcome) -> float | None:
    """Return a metric's value of a round trip if it is below LOSSLESS of the references' own; else None."""
    if metric.reads != "texts" or not metric.higher_is_better:
        return None
    own = outcome._replace(texts=[references[0] for references in outcome.references])
    value = metric.score(outcome, 0).value
    return value if value < LOSSLESS * metric.score(own, 0).value else None
