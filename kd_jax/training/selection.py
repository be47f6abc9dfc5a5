"""The choice of a model's checkpoint among its evaluated steps.

Cross-entropy on references is wrong for a student of pseudo-targets: it becomes sure of the teacher's texts, so its
cross-entropy on references rises while its texts improve. The task's headline is measured on what matters.
"""

import math
from typing import Any

from kd_jax import config
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE, PromptBatches
from kd_jax.decoding.text import TextTokens, compile_generate, to_text
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe, Select, Training
from kd_jax.models.stack import unstack_layers
from kd_jax.runtime import hosts, preemption
from kd_jax.runtime.backends import local_devices
from kd_jax.runtime.devices import Devices
from kd_jax.runtime.mesh import to_own_host
from kd_jax.runtime.progress import Bar
from kd_jax.tasks.base import Task
from kd_jax.tasks.eval_set import EvalSet
from kd_jax.tasks.metrics import Metric
from kd_jax.tokenizers import base as tokenizers
from kd_jax.types import Params


def decodes_texts(task: Task, training: Training) -> bool:
    """Return whether the choice needs decoded texts.

    A headline that reads the references' probabilities falls with the cross-entropy, one without a direction chooses
    nothing, and a single evaluated step leaves no choice.
    """
    headline = task.metrics[0]
    has_choice = training.steps > training.eval_every
    has_direction = headline.higher_is_better is not None
    return training.select == "headline" and has_choice and has_direction and headline.reads == "texts"


def manifest_inputs(task: Task, training: Training) -> dict[str, Any]:
    """Return the task's fields that decide the choice, by name; the data's manifest has the others."""
    if not decodes_texts(task, training):
        return {}
    fields = {field: getattr(task, field) for field in task.evaluation_fields} | {"decoding": task.decoding}
    inputs = config.flatten(fields, "task")
    return {name: value for name, value in inputs.items() if name not in BEAM_FIELDS}


BEAM_FIELDS = ("task.decoding.beam", "task.decoding.length_penalty")  # texts are decoded in the first way


def selection_value(
    select: Select, step: int, cross_entropy: float, headline: float | None, higher_is_better: bool
) -> float:
    """Return the value by which an evaluated step is chosen: the lower, the better.

    Args:
      select: as of Training.
      step: number of updates.
      cross_entropy: on the validation split, nats per token.
      headline: the metric on validation texts; None if no texts were decoded. Steps with a value that is not finite
        come last.
      higher_is_better: the metric's direction.

    Examples:
      >>> selection_value("headline", 350, 3.1, 14.6, True) > selection_value("headline", 1400, 3.4, 21.4, True)
      True
      >>> selection_value("headline", 350, 3.1, None, True)
      3.1
    """
    if select == "last":
        return -float(step)
    if select == "cross_entropy" or headline is None:
        return cross_entropy
    if not math.isfinite(headline):
        return math.inf
    return -headline if higher_is_better else headline


class ValidationTexts:
    """Texts of the validation split, decoded and scored while a model trains.

    They are decoded in the first way of decoding, as `evaluate` does it; several hosts divide the batches. All prompts
    have the padded length of the last bucket: each other length would be compiled for a few batches. That program is
    `evaluate`'s too, so that a run compiles it once.

    Attributes:
      metric: the task's headline.
      count: number of texts.
    """

    def __init__(self, experiment: ResolvedExperiment, workdir: Workdir, recipe: ResolvedRecipe):
        """Read the examples and encode their prompts; nothing is compiled yet."""
        task, architecture, width = experiment.task, recipe.model, experiment.prompt_widths[-1]
        self.metric: Metric = task.metrics[0]
        self._task, self._tokenizer = task, tokenizers.load(experiment.tokenizer, workdir.data)
        eval_set = EvalSet.load(workdir.data, "validation", recipe.training.select_texts)
        indices = eval_set.text_indices
        prompts = [task.encode_prompt(task.prompt(eval_set.examples[i]), self._tokenizer) for i in indices]
        # A longer prompt would need a program of its own.
        fitting = [n for n, prompt in enumerate(prompts) if len(prompt) <= width] or range(len(prompts))
        self._eval_set = eval_set._replace(text_indices=[indices[n] for n in fitting])
        self.count = len(fitting)
        self._devices: Devices = local_devices(experiment.backend, experiment.mesh)
        self._model = architecture.build(self._tokenizer.vocab_size)
        self._batches = PromptBatches(
            [prompts[n] for n in fitting],
            architecture.layout(self._tokenizer.start, self._tokenizer.forced_prefix),
            (width,),
            INFERENCE_BATCH_SIZE,
            self._devices.count,
        )
        self._program = compile_generate(
            architecture,
            self._tokenizer.vocab_size,
            task.decoding.ways[0],
            task.decoding,
            TextTokens.of(self._tokenizer),
            self._devices,
        )

    def score(self, params: Params, bar: Bar) -> float | None:
        """Return the headline's value for a model's parameters; None if the run was asked to stop.

        Args:
          params: single or global arrays, as of a training state; layers may be stacked.
          bar: shows the progress.
        """
        process, devices = hosts.process(), self._devices
        params = to_own_host(unstack_layers(params))
        placed = devices.replicate(params, self._model.axes(params))
        own = range(process.index, len(self._batches), process.count)
        parts: list[list[tuple[int, str]]] = []
        for number, i in enumerate(own):
            if preemption.may_stop_alone():
                bar.show("")
                return None
            bar.show(f"validation texts, batch {number + 1} of {len(own)}")
            padded_width, indices = self._batches.plan[i]
            with bar.compiling_once(f"validation texts {padded_width}"):
                rows = devices.to_host(self._program(placed, devices.shard(self._batches[i])))
            parts.append([(int(n), to_text(rows[b], self._tokenizer)) for b, n in enumerate(indices)])
        bar.show("")
        texts = [text for _, text in sorted((n, text) for part in hosts.all_gather(parts) for n, text in part)]
        return self.metric.score(self._eval_set.text_outcome(self._task, texts), resamples=0).value
