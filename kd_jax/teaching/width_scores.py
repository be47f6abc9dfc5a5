"""Scores by which a narrower student's heads, neurons and channels are chosen from a wider model's."""

from typing import cast

import numpy as np

from kd_jax.batches import pipeline
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE
from kd_jax.models.transformer import Transformer
from kd_jax.students.importance import importance
from kd_jax.students.narrow import Scores, WidthRule, control_scores
from kd_jax.teaching.teacher import TrainedModel


def width_scores(wider: TrainedModel, width: WidthRule, sample: int, references: int = 0) -> Scores:
    """Return a score for each head, neuron and channel of the wider model: the teacher, or another student.

    The rule "importance" needs a sample of training examples; the experiment's seed draws them among those of which the
    student has the `references` (0 for all).
    """
    experiment = wider.experiment
    # Scores are of the parts of a Transformer; a student of another architecture is never narrower.
    architecture = cast(Transformer, wider.architecture)
    if width != "importance":
        return control_scores(width, architecture, experiment.seed)
    split = pipeline.with_references(wider.workdir.data, references)
    rng = np.random.default_rng(experiment.seed)
    indices = np.sort(rng.choice(len(split), min(sample, len(split)), replace=False))
    batches = pipeline.EvalBatches(
        split, wider.layout, experiment.shapes, INFERENCE_BATCH_SIZE, wider.devices.count, indices
    )
    return importance(wider.model, wider.params, batches, wider.devices, architecture.head_width)
