"""What a model writes, how likely it holds the true texts, and how good that is by the task's metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from kd_jax.artifacts import files
from kd_jax.artifacts.manifest import Folder, read_lines
from kd_jax.batches.pipeline import EvalBatches, PromptBatches
from kd_jax.decoding.text import to_text
from kd_jax.evaluation.candidates import Candidate, Programs
from kd_jax.runtime import hosts, progress
from kd_jax.runtime.devices import Devices
from kd_jax.tasks.base import Example, Task
from kd_jax.tasks.metrics import Metric, Outcome
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.types import Batch, Params

Texts = Mapping[str, Sequence[str]]  # way of writing -> a text of every written example


class EvalSet(NamedTuple):
    """A split's examples, and those of them that texts are written for.

    Attributes:
      examples: the split's, as text.
      written: the numbers of those that texts are written for.
    """

    examples: Sequence[Example]
    written: Sequence[int]

    @classmethod
    def of(cls, folder: Folder, split: str, count: int) -> "EvalSet":
        """A prepared split's, `count` of them evenly spread; 0 for all."""
        examples = read_lines(folder.file(f"{split}.jsonl"))
        chosen = np.linspace(0, len(examples) - 1, min(count or len(examples), len(examples))).astype(int)
        return cls(examples, sorted(set(chosen.tolist())))

    def outcome(self, task: Task, texts: Sequence[str]) -> Outcome:
        """Of texts that were written, one for each of `written`."""
        examples = [self.examples[i] for i in self.written]
        return Outcome(examples, texts, [task.references_of(example) for example in examples])


def texts(
    candidate: Candidate,
    params: Params,
    programs: Programs,
    batches: PromptBatches,
    ways: Sequence[str],
    tokenizer: Tokenizer,
    devices: Devices,
) -> dict[str, list[str]]:
    """Way of writing -> the text that the model writes for every prompt, in their order.

    Args:
      candidate, params: the model, and its parameters on the devices.
      programs: compiled functions.
      batches: the prompts.
      ways: such as ("greedy", "beam").
      tokenizer, devices: the run's.
    """

    def write(numbers: np.ndarray, batch: Any) -> dict[str, list[tuple[int, str]]]:
        prompts = devices.shard(batch)
        ids = {way: programs.write(candidate.architecture, way, devices)(params, prompts) for way in ways}
        rows = {way: devices.to_host(ids_BT) for way, ids_BT in ids.items()}
        return {way: [(int(n), to_text(rows[way][b], tokenizer)) for b, n in enumerate(numbers)] for way in ways}

    parts = map_batches(f"write {candidate.name}", batches, write)
    return {way: [text for _, text in sorted(pair for part in parts for pair in part[way])] for way in ways}


def likelihoods(
    candidate: Candidate,
    params: Params,
    programs: Programs,
    batches: EvalBatches,
    owners: np.ndarray,
    devices: Devices,
) -> tuple[np.ndarray, np.ndarray]:
    """(nats, tokens) of every text example's targets that count: float64 and int64 [text examples].

    Args:
      candidate, params, programs, devices: as `texts`.
      batches: the encoded examples.
      owners: int [encoded examples], the text example that each is a part of.
    """

    def nats(indices: np.ndarray, batch: Batch) -> tuple[list[int], list[float], list[int]]:
        nll_B = devices.to_host(programs.likelihood(candidate.architecture, devices)(params, devices.shard(batch)))
        count = len(indices)
        return owners[indices].tolist(), nll_B[:count].tolist(), batch.mask_BT[:count].sum(-1).tolist()

    nll, tokens = np.zeros(owners.max() + 1), np.zeros(owners.max() + 1, np.int64)
    for numbers, nll_B, tokens_B in map_batches(f"likelihood {candidate.name}", batches, nats):
        np.add.at(nll, numbers, nll_B)
        np.add.at(tokens, numbers, tokens_B)
    return nll, tokens


def map_batches(title: str, batches: PromptBatches | EvalBatches, measure: Callable[[np.ndarray, Any], Any]) -> list:
    """What is measured of every batch, in their order, under a bar; each host takes its share of the batches.

    Args:
      title: of the bar.
      batches: with their `plan` of (padded lengths, example numbers).
      measure: (example numbers, batch) -> something JSON-able, if there are several hosts.
    """
    here, of = hosts.process()
    mine, parts = range(here, len(batches), of), []
    with progress.bar(title, len(mine)) as bar:
        for i in mine:
            length, indices = batches.plan[i]
            with bar.meeting(length):
                parts.append(measure(indices, batches[i]))
            bar.advance(1)
    return hosts.all_gather(parts)


def of_tokens(task: Task, measured: EvalSet, nll_N: np.ndarray, tokens_N: np.ndarray) -> Outcome:
    """The likelihoods of all examples; no texts."""
    references = [task.references_of(example) for example in measured.examples]
    return Outcome(measured.examples, [], references, nll_N, tokens_N)


def scores(
    metrics: Sequence[Metric], written: Mapping[str, Outcome], tokens: Outcome | None, resamples: int
) -> dict[str, Any]:
    """The task's metrics, "NAME" and "NAME_ci"; of each further way of writing "NAME_WAY", for the first text metric.

    Args:
      metrics: the task's.
      written: way of writing -> what was written; the first is what the metrics are about.
      tokens: the same examples with their likelihoods; None for what has none: metrics that read them are None.
      resamples: for the intervals.
    """
    first, *others = written
    figures: dict[str, Any] = {}
    for metric in metrics:
        outcome = written[first] if metric.reads == "texts" else tokens
        score = outcome and metric.score(outcome, resamples)
        figures |= {metric.name: score and score.value, f"{metric.name}_ci": score and list(score.interval)}
    beside = next((metric for metric in metrics if metric.reads == "texts"), None)
    if beside:
        figures |= {f"{beside.name}_{way}": beside.score(written[way], 0).value for way in others}
    return figures


def side_by_side(task: Task, measured: EvalSet, written: Texts) -> list[dict[str, Any]]:
    """One row for each written example: its number, source, reference, and what was written each way."""
    rows = []
    for place, number in enumerate(measured.written):
        example = measured.examples[number]
        row = {"number": number, "source": task.prompt(example), "reference": task.references_of(example)[0]}
        rows.append(row | {way: texts[place] for way, texts in written.items()})
    return rows


def read_outcome(
    task: Task, measured: EvalSet, folder: Folder, name: str, reads: Literal["texts", "tokens"]
) -> Outcome:
    """What a finished evaluation left of a model: the texts of its first way of writing, or the likelihoods.

    Raises:
      KdError: if a file is missing or is not as it was written.
    """
    if reads == "texts":
        rows = read_lines(folder.file(f"{name}.jsonl"))
        written = measured._replace(written=[row["number"] for row in rows])
        return written.outcome(task, [row[task.decoding.ways[0]] for row in rows])
    arrays = files.read_arrays(folder.file(f"{name}.npz"))
    return of_tokens(task, measured, arrays["nll"], arrays["tokens"])
