"""A round of a student's training: texts that it writes, as a split of examples with the teacher's signals."""

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from kd_jax import config
from kd_jax.artifacts import files, manifest
from kd_jax.artifacts.digests import params_digest
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches import store
from kd_jax.batches.on_policy import OWN_TEXTS_SEED, OwnTextForm, PooledExamples, Prompt, Rounds, draw_own
from kd_jax.batches.targets import OWN, WEIGHT, TrainTargets
from kd_jax.errors import Preempted
from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.base import Architecture
from kd_jax.objective.terms import cached_signals
from kd_jax.provenance import input_fields
from kd_jax.runtime import hosts, progress
from kd_jax.tasks.base import ENCODED, Encoded
from kd_jax.teaching.own_texts import OwnTextWriter, distinct_pairs
from kd_jax.teaching.signal_cache import write_signal
from kd_jax.teaching.teacher import Teacher
from kd_jax.tokenizers import base as tokenizers
from kd_jax.types import Params

TEXTS = "texts.jsonl"


def write_texts(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    name: str,
    number: int,
    examples: PooledExamples,
    params: Params,
) -> Folder:
    """Let a student write the texts of a round; return the folder of the split. A finished one is left as it is.

    Args:
      experiment: the resolved experiment.
      workdir: the run's folder.
      name: of the student, whose targets are Rounds.
      number: of the round, from 0.
      examples: the student's.
      params: the student's at the beginning of the round.

    Raises:
      Preempted: if the run was asked to stop; the same call begins the round's texts again.
    """
    recipe, folder, data = experiment.recipes[name], workdir.round(name, number), workdir.data.outputs()
    rule = recipe.targets
    assert isinstance(rule, Rounds)
    fields = input_fields(experiment)
    inputs = {field: fields[field] for field in ("seed", "buckets", "prompt_buckets")}
    inputs |= config.flatten(rule, "targets") | config.flatten(experiment.task.decoding, "task.decoding")
    inputs |= {"round": number, "references": recipe.references, "consumed.student": params_digest(params)}
    inputs |= {"consumed.tokenizer": data["tokenizer"], "consumed.train": data["splits"]["train"]}
    if not folder.begin(inputs):
        return folder
    began, shapes, task = time.perf_counter(), experiment.shapes, experiment.task
    tokenizer = tokenizers.load(experiment.tokenizer, workdir.data)
    layout = recipe.model.layout(tokenizer.start, tokenizer.forced_prefix)
    writer = OwnTextWriter(experiment, recipe, rule, tokenizer)
    form = OwnTextForm(
        layout,
        shapes,
        prompted=task.prompted,
        max_prompt=writer.widths[-1],
        length=rule.length,
        beginning=rule.beginning,
    )
    seed = (OWN_TEXTS_SEED, experiment.seed, number)
    chosen = np.random.default_rng(seed).permutation(len(examples))[: rule.examples or len(examples)]
    share = rule.share_at(rule.first_steps(recipe.training.steps)[number])
    is_own_N = draw_own(experiment.seed, number, len(examples), share) | (np.arange(len(examples)) >= examples.targets)
    prompts: dict[int, Prompt] = {}
    for i in map(int, chosen):
        # The number decides the draws: no two rounds share one.
        prompt = form.prompt(examples.read(i).encoded, number * len(examples) + i) if is_own_N[i] else None
        if prompt:
            prompts[i] = prompt
    with progress.bar(f"{name}: texts of round {number + 1}", len(prompts)) as bar:
        written = writer.write(params, list(prompts.values()), bar, advance=True)
    if written is None:
        raise Preempted
    texts = dict(zip(prompts, written, strict=True))

    def records() -> Iterator[tuple[Encoded, float, bool]]:
        for i in map(int, chosen):
            example = examples.read(i)
            if i in texts:
                yield form.example(example.encoded, texts[i]), 1.0, True
            elif i < examples.targets:
                yield example.encoded, example.weight, False

    def write() -> dict[str, Any]:
        lengths: list[tuple[int, int]] = []

        def arrays() -> Iterator[dict[str, np.ndarray]]:
            for encoded, weight, own in records():
                lengths.append((len(encoded.prompt), len(encoded.completion)))
                one = {"weight": np.asarray([weight], np.float32), "own": np.asarray([own], np.uint8)}
                yield encoded._asdict() | one

        digest = store.write_stream(folder.path, "train", ENCODED | WEIGHT | OWN, arrays())
        manifest.write_array(folder.path / "train.lengths.npy", np.asarray(lengths, np.int32).reshape(-1, 2))
        with files.atomic_write(folder.path / TEXTS) as file:
            for line in _lines(records(), recipe.model, tokenizer):
                file.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())
        return {"digest": digest, "examples": len(lengths)}

    outputs = hosts.run_on_main(write)
    tokens = sum(map(len, written))
    outputs |= {
        "own_texts": len(written),
        "own_tokens": tokens,
        "own_length": tokens / max(1, len(written)),
        "own_cut": sum(int(text[-1]) not in writer.ends for text in written) / max(1, len(written)),
        "own_distinct_2": distinct_pairs(written),
        "sampling_seconds": time.perf_counter() - began,
    }
    folder.finish(outputs, time.perf_counter() - began)
    progress.log(
        f"{name}: round {number + 1}: {len(written)} own texts, {outputs['own_length']:.1f} tokens each, "
        f"{outputs['own_cut']:.0%} cut, distinct-2 {outputs['own_distinct_2']:.2f}; {folder.path}"
    )
    return folder


def _lines(
    records: Iterator[tuple[Encoded, float, bool]], architecture: Architecture, tokenizer: tokenizers.Tokenizer
) -> Iterator[dict[str, Any]]:
    """Yield what a person or another program reads of each example of a round; example n is line n.

    `sequence_ids` are those that the decoder reads and predicts. Before them an encoder reads `encoder_ids`.
    """
    for n, (encoded, _, own) in enumerate(records):
        prompt, completion = encoded.prompt.tolist(), encoded.completion.tolist()
        given, text = prompt, completion
        if own:
            counts = encoded.counts[len(prompt) :]
            given, text = [*prompt, *encoded.completion[~counts].tolist()], encoded.completion[counts].tolist()
        ended = bool(text) and text[-1] in tokenizer.ends
        line = {
            "example": n,
            "own": own,
            "prompt": tokenizer.decode(given),
            "text": tokenizer.decode(text[:-1] if ended else text),
            "ended": ended,
            "prompt_ids": given,
            "ids": text,
        }
        if architecture.family == "encoder_decoder":
            yield line | {"encoder_ids": prompt, "sequence_ids": [tokenizer.start, *completion]}
        else:
            yield line | {"sequence_ids": [tokenizer.start, *prompt, *completion]}


def scores_request(name: str, number: int, rule: Rounds, folder: Folder) -> str:
    """Return the line that asks for the teacher's scores of a round's texts, whose folder is named."""
    return (
        f"{name}: round {number + 1} of {rule.count} needs the teacher's scores of {folder.path / TEXTS}. Run "
        f"`import-logprobs FILES --student {name}` with them, then `student` again."
    )


def write_signals(teacher: Teacher, name: str, number: int) -> None:
    """Write the teacher's signals for the texts of a round, as the student's terms read them; finished ones remain."""
    data, terms = teacher.workdir.round(name, number), teacher.experiment.recipes[name].terms
    for signal_name, signal in cached_signals(terms).items():
        folder = teacher.workdir.round_cache(name, number, signal_name)
        write_signal(teacher, folder, signal, TrainTargets(), "train", False, data=data)
