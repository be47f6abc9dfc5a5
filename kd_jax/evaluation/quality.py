"""What a model writes, and how good it is by the task's metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from kd_jax.artifacts import runlog
from kd_jax.data.pipeline import EvalBatches
from kd_jax.data.tokenizers import Tokenizer
from kd_jax.decoding.text import to_text
from kd_jax.evaluation.contenders import Contender, Programs
from kd_jax.experiment import Evaluation
from kd_jax.parallel.base import Devices
from kd_jax.tasks.base import Example, Task
from kd_jax.types import Params


def texts(
    contender: Contender,
    params: Params,
    programs: Programs,
    batches: EvalBatches,
    beams: Sequence[int],
    tokenizer: Tokenizer,
    devices: Devices,
) -> dict[int, list[str]]:
    """Beam width -> the text that the model writes for every example, in their order.

    Args:
      contender, params: the model, and its parameters on the devices.
      programs: compiled functions.
      batches: the examples.
      beams: widths; 1 for greedy.
      tokenizer, devices: the run's.
    """
    written: dict[int, dict[int, str]] = {beam: {} for beam in beams}
    with runlog.progress(f"write {contender.name}", len(batches)) as bar:
        for number, (bucket, indices) in enumerate(batches.plan()):
            prompts = devices.cut(batches.prompts(number))
            with bar.meeting(bucket):
                for beam, by_index in written.items():
                    ids_BT = devices.gather(programs.write(contender.architecture, beam, devices)(params, prompts))
                    by_index |= {int(i): to_text(ids_BT[b], tokenizer) for b, i in enumerate(indices)}
            bar.advance(1)
    return {beam: [by_index[i] for i in sorted(by_index)] for beam, by_index in written.items()}


def scores(task: Task, greedy: list[str], beam: list[str], references: list[str], resamples: int) -> dict[str, Any]:
    """The task's metrics of greedy texts, "NAME" and "NAME_ci"; the headline of beam texts too, as "NAME_beam"."""
    figures: dict[str, Any] = {}
    for metric in task.metrics:
        score = metric.score(greedy, references, resamples)
        figures |= {metric.name: score.value, f"{metric.name}_ci": score.interval and list(score.interval)}
        figures.setdefault("signature", score.signature)
    headline = task.metrics[0]
    return figures | {f"{headline.name}_beam": headline.score(beam, references, 0).value}


def side_by_side(
    task: Task, examples: Sequence[Example], evaluation: Evaluation, written: Mapping[int, list[str]]
) -> list[dict[str, str]]:
    """One row per example: source, reference, and what was written."""
    return [
        {"source": task.prompt(example), "reference": task.reference(example), "greedy": greedy, "beam": beam}
        for example, greedy, beam in zip(examples, written[1], written[evaluation.beam], strict=True)
    ]
