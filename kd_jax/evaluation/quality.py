"""Generate texts, compute likelihoods, and score both by the task's metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from kd_jax.artifacts import files
from kd_jax.artifacts.manifest import Folder, read_lines
from kd_jax.batches.pipeline import EvalBatches, PlannedBatches, PromptBatches
from kd_jax.decoding.text import to_text
from kd_jax.errors import KdError
from kd_jax.evaluation.candidates import Candidate, Programs
from kd_jax.evaluation.figures import MetricFigure
from kd_jax.fields import show
from kd_jax.runtime import hosts, progress
from kd_jax.runtime.devices import Devices
from kd_jax.tasks.base import Task
from kd_jax.tasks.eval_set import EvalSet
from kd_jax.tasks.metrics import Metric, Outcome
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.types import Batch, Params

REMEDY = "Run `evaluate` again with --force."


def generate_texts(
    candidate: Candidate,
    params: Params,
    programs: Programs,
    batches: PromptBatches,
    ways: Sequence[str],
    tokenizer: Tokenizer,
    devices: Devices,
) -> dict[str, list[str]]:
    """Return way of decoding -> a generated text for every prompt, in their order."""

    def generate(indices: np.ndarray, batch: Any) -> dict[str, list[tuple[int, str]]]:
        prompts = devices.shard(batch)
        ids = {way: programs.write(candidate.architecture, way, devices)(params, prompts) for way in ways}
        rows = {way: devices.to_host(ids_BT) for way, ids_BT in ids.items()}
        return {way: [(int(i), to_text(rows[way][b], tokenizer)) for b, i in enumerate(indices)] for way in ways}

    parts = map_batches(f"write {candidate.name}", batches, generate)
    return {way: [text for _, text in sorted(pair for part in parts for pair in part[way])] for way in ways}


def negative_log_likelihoods(
    candidate: Candidate,
    params: Params,
    programs: Programs,
    batches: EvalBatches,
    owners: np.ndarray,
    devices: Devices,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (nats, tokens) of each text example's targets that count, float64 and int64.

    `owners` holds the number of the text example that each encoded example is a part of.
    """

    def measure(indices: np.ndarray, batch: Batch) -> tuple[list[int], list[float], list[int]]:
        program = programs.negative_log_likelihood(candidate.architecture, devices)
        nll_B = devices.to_host(program(params, devices.shard(batch)))
        count = len(indices)  # rows after these are padding
        return owners[indices].tolist(), nll_B[:count].tolist(), batch.mask_BT[:count].sum(-1).tolist()

    nll, tokens = np.zeros(owners.max() + 1), np.zeros(owners.max() + 1, np.int64)
    for numbers, nll_B, tokens_B in map_batches(f"likelihood {candidate.name}", batches, measure):
        np.add.at(nll, numbers, nll_B)
        np.add.at(tokens, numbers, tokens_B)
    return nll, tokens


def map_batches(title: str, batches: PlannedBatches[Any], measure: Callable[[np.ndarray, Any], Any]) -> list:
    """Apply a function of (example numbers, batch) to every batch; return the values on every host.

    Several hosts share the batches, so a value must be JSON-able.
    """
    process = hosts.process()
    own, values = range(process.index, len(batches), process.count), []
    with progress.bar(title, len(own)) as bar:
        for i in own:
            length, indices = batches.plan[i]
            with bar.compiling_once(length):
                values.append(measure(indices, batches[i]))
            bar.advance(1)
    return hosts.all_gather(values)


def score_metrics(
    metrics: Sequence[Metric], texts: Mapping[str, Outcome], tokens: Outcome | None, resamples: int
) -> dict[str, MetricFigure]:
    """Score all metrics of a task, with 95% intervals; the first text metric also for the beam search.

    The metrics are about the first way of `texts`. Without `tokens`, metrics of tokens have no value.
    """
    first = next(iter(texts.values()))
    first_text_metric = next((metric.name for metric in metrics if metric.reads == "texts"), None)
    figures = {metric.name: MetricFigure(None) for metric in metrics}
    for metric in metrics:
        outcome = first if metric.reads == "texts" else tokens
        if outcome is not None:
            score = metric.score(outcome, resamples)
            has_beam = "beam" in texts and metric.name == first_text_metric
            beam = metric.score(texts["beam"], 0).value if has_beam else None
            figures[metric.name] = MetricFigure(score.value, score.interval, beam)
    return figures


def text_rows(task: Task, eval_set: EvalSet, texts: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return a JSON-able row for each generated text: "number", "source", "reference", and the text of each way."""
    rows = []
    for place, number in enumerate(eval_set.text_indices):
        example = eval_set.examples[number]
        row = {"number": number, "source": task.prompt(example), "reference": task.references_of(example)[0]}
        rows.append(row | {way: generated[place] for way, generated in texts.items()})
    return rows


def read_outcome(
    task: Task, eval_set: EvalSet, folder: Folder, name: str, reads: Literal["texts", "tokens"]
) -> Outcome:
    """Read a model's texts of the first way of decoding, or its likelihoods, from a finished evaluation."""
    if reads == "texts":
        rows = read_text_rows(task, eval_set, folder, name)
        return eval_set.text_outcome(task, [row[task.decoding.ways[0]] for row in rows])
    path, count = folder.file(f"{name}.npz"), len(eval_set.examples)
    arrays = files.read_arrays(path)
    for field in ("nll", "tokens"):
        if field not in arrays or arrays[field].shape != (count,):
            got = f"shape {arrays[field].shape}" if field in arrays else "none"
            raise KdError(f"{path}: expected {field} of {count} examples, got {got}. {REMEDY}")
    return eval_set.likelihood_outcome(task, arrays["nll"], arrays["tokens"])


def read_text_rows(task: Task, eval_set: EvalSet, folder: Folder, name: str) -> list[dict[str, Any]]:
    """Read the rows of `text_rows` of a model from a finished evaluation.

    Raises:
      KdError: if there is not one row for each text of the evaluation set, or a text is missing.
    """
    path = folder.file(f"{name}.jsonl")
    rows, numbers = read_lines(path), list(eval_set.text_indices)
    texts = ("source", "reference", task.decoding.ways[0])
    for row in rows:
        if not isinstance(row, dict) or not all(isinstance(row.get(text), str) for text in texts):
            raise KdError(f"{path}: expected rows with the texts {', '.join(texts)}, got {show(row)}. {REMEDY}")
    if [row.get("number") for row in rows] != numbers:
        raise KdError(f"{path}: expected a row for each of {len(numbers)} examples, got {len(rows)} others. {REMEDY}")
    return rows
