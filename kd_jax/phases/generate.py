"""Answer standard input with a trained model, line by line, on standard output."""

import dataclasses
import difflib
import functools
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from kd_jax.artifacts import checkpoint
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.buckets import MAX_LENGTH
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE, PromptBatches
from kd_jax.decoding import text
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment
from kd_jax.runtime.backends import make_devices
from kd_jax.tasks.base import Decoding, Task
from kd_jax.tokenizers import base as tokenizers


def run(experiment: ResolvedExperiment, workdir: Workdir, model: str = "", changes: Mapping[str, Any] | None = None) -> None:
    """Writes one line for every line read, in order; an empty line stays empty.

    Args:
      experiment: as the workdir keeps it.
      workdir: of a run with trained models.
      model: "teacher" or a student's name; "" for the distilled student.
      changes: fields of Decoding and of Sampling that differ from the task's, such as {"beam": 4}.

    Raises:
      KdError: if there is no such model, an option is out of its range, or a line cannot be read.
    """
    name = named(experiment, model)
    decoding = changed(experiment.task.decoding, changes or {})
    folder = workdir.model(name)
    tokenizer = tokenizers.load(experiment.tokenizer, folder)
    if tokenizers.digest(tokenizer) != folder.inputs()["consumed.tokenizer"]:
        raise KdError(f"{folder.path}: its tokeniser is not the one that {name} was trained with")
    architecture, devices = experiment.recipes[name].model, make_devices("jit")
    network = architecture.build(tokenizer.vocab_size)
    params = devices.replicate(checkpoint.load_params(folder, network.init))
    parts = {"model": network, "architecture": architecture, "way": decoding.ways[-1], "decoding": decoding}
    step = devices.compile(functools.partial(text.write, **parts, eos=tokenizer.eos, suppress_tokens=tokenizer.suppress_tokens))
    layout = architecture.layout(tokenizer.start, tokenizer.forced_prefix)
    most = min(architecture.context or MAX_LENGTH, MAX_LENGTH)
    for numbered in waiting_lines(sys.stdin.buffer, f"{name}> "):
        lines = [(number, line) for number, line in numbered if line.strip()]
        prompts = [_encoded(experiment.task, tokenizer, number, line, most) for number, line in lines]
        size = 1 if len(numbered) == 1 else INFERENCE_BATCH_SIZE  # a person waits for one line: few shapes are compiled
        indices = [number for number, _ in lines]
        batches = PromptBatches(prompts, layout, experiment.prompt_widths, size, 1, indices)
        written = {}
        for (_, numbers), inputs in zip(batches.plan, batches, strict=True):
            ids_BT = devices.to_host(step(params, devices.shard(inputs)))
            written |= {int(n): text.to_text(ids_T, tokenizer) for n, ids_T in zip(numbers, ids_BT, strict=False)}
        sys.stdout.write("".join((written[number] if number in written else "") + "\n" for number, _ in numbered))
        sys.stdout.flush()


def changed(decoding: Decoding, changes: Mapping[str, Any]) -> Decoding:
    """The task's settings with others in their place: no beam unless it is asked for, and a given length alone.

    Raises:
      KdError: names the option that is out of its range.
    """
    drawn = {key: value for key, value in changes.items() if key in vars(decoding.sampling)}
    settings = {key: value for key, value in changes.items() if key not in drawn}
    sampling = dataclasses.replace(decoding.sampling, **drawn)
    if "beam" not in settings:
        settings["beam"] = 1
    if "length" in settings:
        settings["length_ratio"] = 0.0
    decoding = dataclasses.replace(decoding, sampling=sampling, **settings)
    try:
        decoding.check()
    except KdError as error:
        raise KdError(re.sub(r"task\.decoding\.(sampling\.)?", "--", str(error)).replace("_", "-")) from error
    if decoding.beam > 1 and drawn:
        raise KdError(f"--beam {decoding.beam}: beside --{next(iter(drawn)).replace('_', '-')}; wanted one of the two")
    return decoding


def _encoded(task: Task, tokenizer: tokenizers.Tokenizer, number: int, line: str, most: int) -> np.ndarray:
    """A line's token ids; raises KdError naming the line that cannot be a prompt."""
    try:
        ids = task.encode_prompt(line, tokenizer)
    except KdError as error:
        raise KdError(f"standard input, line {number}: {error}") from error
    if len(ids) >= most:
        raise KdError(f"standard input, line {number}: {len(ids)} tokens; wanted fewer than {most}: shorten it")
    return ids


def named(experiment: ResolvedExperiment, model: str) -> str:
    """The model that is meant; raises KdError for another than there are."""
    name = model or default_model(experiment)
    if name not in experiment.recipes:
        near = difflib.get_close_matches(name, experiment.recipes, 1, 0.0)
        raise KdError(f"--model {name}: no such model; did you mean {near[0]}?")
    return name


def default_model(experiment: ResolvedExperiment) -> str:
    """The distilled student of the comparison, else the last student, else the teacher."""
    if experiment.comparison:
        return experiment.comparison.distilled
    return [TEACHER, *experiment.students][-1]


def waiting_lines(stream: BinaryIO, prompt: str) -> Iterator[list[tuple[int, str]]]:
    """(number, line) of the lines that wait on `stream`, INFERENCE_BATCH_SIZE at once; a person is asked for one at a time."""
    person = stream.isatty()
    numbered = enumerate(stream, 1)
    while True:
        if person:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        raw = list(itertools.islice(numbered, 1 if person else INFERENCE_BATCH_SIZE))
        if not raw:
            break
        yield [(number, _decoded(number, line)) for number, line in raw]
    if person:
        sys.stderr.write("\n")


def _decoded(number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise KdError(f"standard input, line {number}: not UTF-8; convert it with iconv") from error
