"""What a task is: from text to tokens and back, and how what was written is measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from kd_jax.types import Field

Example = Mapping[str, str]


class Encoded(NamedTuple):
    """One example as token ids. A layout makes rows of it.

    Attributes:
      prompt: int32 [P], what is given, its end included.
      completion: int32 [C], what is to be written, its end included.
      counts: bool [C], which tokens of the completion count in the loss. Said here and nowhere else.
    """

    prompt: np.ndarray
    completion: np.ndarray
    counts: np.ndarray


ENCODED = {"prompt": Field((), "int32"), "completion": Field((), "int32"), "counts": Field((), "bool")}


class Score(NamedTuple):
    """A metric's value over a split.

    Attributes:
      value: the metric.
      interval: (low, high), 95% by bootstrap; None if it was not asked for.
      signature: how it was computed, in the metric's own notation.
    """

    value: float
    interval: tuple[float, float] | None = None
    signature: str = ""


class Metric(NamedTuple):
    """One measure of texts against references.

    Attributes:
      name: its key in reports, such as "bleu"; the interval is "bleu_ci".
      label: its heading for people.
      higher_is_better: its direction.
      digits: shown after the point.
      score: (hypotheses, references, bootstrap resamples or 0) -> Score.
    """

    name: str
    label: str
    higher_is_better: bool
    digits: int
    score: Callable[[Sequence[str], Sequence[str], int], Score]


class Task(Protocol):
    """A frozen dataclass; pure functions, no I/O."""

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The first is the headline."""
        ...

    def fields(self) -> tuple[str, ...]:
        """The text fields that an example must have."""
        ...

    def encode(self, example: Example, tokenizer: Any) -> Encoded:
        """An example as token ids."""
        ...

    def encode_prompt(self, text: str, tokenizer: Any) -> np.ndarray:
        """What is given alone, int32 [P]."""
        ...

    def prompt(self, example: Example) -> str:
        """What is given, as text."""
        ...

    def reference(self, example: Example) -> str:
        """What is to be written, as text."""
        ...

    def closeness(self, hypothesis: str, reference: str) -> float:
        """How near one text is to another, for the choice among hypotheses."""
        ...
