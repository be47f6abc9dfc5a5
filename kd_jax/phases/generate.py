"""Answer standard input with a trained model, line by line, on standard output."""

import difflib
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE
from kd_jax.errors import KdError
from kd_jax.evaluation.loaded_model import LoadedModel
from kd_jax.experiment import ResolvedExperiment
from kd_jax.tasks.base import Decoding


def run(experiment: ResolvedExperiment, workdir: Workdir, model: str = "", decoding: Decoding | None = None) -> None:
    """Write one line to standard output for every line of standard input, in order; an empty line stays empty.

    Args:
      experiment: the experiment that the workdir was made with.
      workdir: a run with trained models.
      model: "teacher" or a student's name; "" for the distilled student.
      decoding: how texts are written; None for the task's decoding without beam search.

    Raises:
      KdError: if there is no such model, or a line cannot be a prompt.
    """
    name = resolve_model_name(experiment, model)
    loaded = LoadedModel.from_run(experiment, workdir, name)
    decoding = decoding or loaded.decoding
    for numbered in read_batches(sys.stdin.buffer, f"{name}> "):
        lines = {number: line for number, line in numbered if line.strip()}
        prompts = {}
        for number, line in lines.items():
            try:
                prompts[number] = loaded.encode(line)
            except KdError as error:
                raise KdError(f"standard input, line {number}: {error}") from error
        # One line, as a person types it, is not padded to a batch: fewer shapes are compiled.
        batch_size = 1 if len(numbered) == 1 else INFERENCE_BATCH_SIZE
        texts = loaded.generate_from_ids(prompts, decoding, batch_size)
        sys.stdout.write("".join(texts.get(number, "") + "\n" for number, _ in numbered))
        sys.stdout.flush()


def resolve_model_name(experiment: ResolvedExperiment, model: str) -> str:
    """Return the name of the model that --model means.

    "" means the comparison's distilled student, else the last student, else the teacher.
    """
    if model and model not in experiment.recipes:
        (nearest,) = difflib.get_close_matches(model, experiment.recipes, 1, 0.0) or [TEACHER]
        raise KdError(f"--model: expected one of {', '.join(experiment.recipes)}, got {model}. Did you mean {nearest}?")
    if model or not experiment.comparison:
        return model or list(experiment.recipes)[-1]
    return experiment.comparison.distilled


def read_batches(stream: BinaryIO, prompt: str) -> Iterator[Sequence[tuple[int, str]]]:
    """Yield (number, line) of the lines of a stream in batches; at a terminal, prompt for one line at a time."""
    interactive = stream.isatty()
    numbered = enumerate(stream, 1)
    while True:
        if interactive:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        raw = list(itertools.islice(numbered, 1 if interactive else INFERENCE_BATCH_SIZE))
        if not raw:
            break
        yield [(number, _decode(number, line)) for number, line in raw]
    if interactive:
        sys.stderr.write("\n")


def _decode(number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise KdError(
            f"standard input, line {number}: expected UTF-8, got other bytes. Convert it with iconv."
        ) from error
