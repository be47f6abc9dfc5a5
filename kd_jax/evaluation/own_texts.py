"""How close a model is to the teacher on texts that it writes itself."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.batches.layouts import Bucket, Layout, Segment
from kd_jax.batches.on_policy import OnPolicy, OwnTextForm, Prompt
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE, PlannedBatches, Split
from kd_jax.errors import Preempted
from kd_jax.evaluation.candidates import Candidate
from kd_jax.evaluation.figures import OwnTextFigures
from kd_jax.evaluation.quality import map_batches
from kd_jax.experiment import ResolvedExperiment
from kd_jax.runtime import progress
from kd_jax.runtime.devices import Devices
from kd_jax.tasks.base import Encoded
from kd_jax.teaching.own_texts import OwnTextWriter, distinct_pairs
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.training.on_policy import OWN_TERMS, judge_step
from kd_jax.types import Batch, Params


class OwnTextBatches(PlannedBatches[Batch]):
    """Examples in the rows of the last bucket, one a row."""

    def __init__(self, examples: Sequence[Encoded], layout: Layout, bucket: Bucket, batch_size: int):
        """Plan the batches."""
        self._examples, self._layout, self._batch_size = examples, layout, batch_size
        starts = range(0, len(examples), batch_size)
        self.plan = [(bucket, np.arange(start, min(start + batch_size, len(examples)))) for start in starts]

    def __getitem__(self, i: int) -> Batch:
        """Return batch i."""
        bucket, numbers = self.plan[i]
        rows = [[Segment(int(n), self._examples[n], 1.0, {})] for n in numbers]
        return self._layout.batch(rows, self._batch_size, bucket, {})


def compare_own_texts(
    experiment: ResolvedExperiment,
    split: Split,
    tokenizer: Tokenizer,
    candidate: Candidate,
    params: tuple[Params, Params],
    devices: Devices,
) -> OwnTextFigures | None:
    """Let a model write texts, and compare it with the teacher at each of their tokens.

    The texts are drawn at temperature 1, for the same examples of the split for every model, evenly spaced.

    Args:
      experiment: `evaluation.own_texts` is the number of texts.
      split: the evaluated split.
      tokenizer: the run's.
      candidate: the model, of the teacher's family.
      params: (the model's, the teacher's), on the devices.
      devices: this host's.

    Returns:
      The figures; None if no example has room for a text.
    """
    rule, task = OnPolicy(share=1.0), experiment.task
    recipe, shapes = experiment.recipes[candidate.trained_name], experiment.shapes
    writer = OwnTextWriter(experiment, recipe, rule, tokenizer)
    layout = recipe.model.layout(tokenizer.start, tokenizer.forced_prefix)
    form = OwnTextForm(layout, shapes, prompted=task.prompted, max_prompt=writer.widths[-1], beginning=rule.beginning)
    encoded = [split.read(int(i)).encoded for i in _evenly(len(split), experiment.evaluation.own_texts)]
    pairs = [(one, form.prompt(one, n)) for n, one in enumerate(encoded)]
    kept: list[tuple[Encoded, Prompt]] = [(one, prompt) for one, prompt in pairs if prompt]
    if not kept:
        return None
    with progress.bar(f"own texts of {candidate.name}", len(kept)) as bar:
        texts = writer.write(candidate.params, [prompt for _, prompt in kept], bar)
        if texts is None:
            raise Preempted
        bar.advance(len(kept))
    examples = [form.example(one, text) for (one, _), text in zip(kept, texts, strict=True)]
    teacher = experiment.recipes[TEACHER].model.build(tokenizer.vocab_size)
    student = recipe.model.build(tokenizer.vocab_size)
    judge = devices.compile_sums(functools.partial(judge_step, student=student, teacher=teacher))
    batch_size = -(-INFERENCE_BATCH_SIZE // devices.count) * devices.count
    batches = OwnTextBatches(examples, layout, shapes[-1], batch_size)

    def to_json(_: np.ndarray, batch: Batch) -> dict[str, tuple[float, int]]:
        sums = jax.device_get(devices.unreplicate(judge(params, devices.shard(batch))))
        return {name: (float(total.value), int(total.weight)) for name, total in sums.items()}

    parts = map_batches(f"judge own texts of {candidate.name}", batches, to_json)
    means = {
        name: sum(part[name][0] for part in parts) / max(1, sum(part[name][1] for part in parts)) for name in OWN_TERMS
    }
    cut = sum(int(text[-1]) not in writer.ends for text in texts) / len(texts)
    length = sum(map(len, texts)) / len(texts)
    return OwnTextFigures(**means, own_length=length, own_cut=cut, own_distinct_2=distinct_pairs(texts))


def _evenly(total: int, count: int) -> np.ndarray:
    """Return `count` numbers below `total`, evenly spaced; all if there are fewer."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
