"""Tasks: text to token ids, settings of generation, and metrics."""

from kd_jax.tasks.base import Decoding, Encoded, Sampling, Task
from kd_jax.tasks.generation import Generation
from kd_jax.tasks.instructions import Instructions
from kd_jax.tasks.metrics import Metric, Outcome, Score
from kd_jax.tasks.summarization import Summarization
from kd_jax.tasks.translation import Translation

__all__ = [
    "Decoding",
    "Encoded",
    "Generation",
    "Instructions",
    "Metric",
    "Outcome",
    "Sampling",
    "Score",
    "Summarization",
    "Task",
    "Translation",
]
