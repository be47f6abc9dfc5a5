"""Answer standard input with a trained model, line by line, on standard output."""

import codecs
import difflib
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE
from kd_jax.errors import KdError
from kd_jax.evaluation.loaded_model import LoadedModel
from kd_jax.experiment import ResolvedExperiment
from kd_jax.printable import printable
from kd_jax.sources.text_files import MAX_LINE, find_format
from kd_jax.tasks.base import Decoding

LINE_BREAKS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")  # those of str.splitlines


def run(experiment: ResolvedExperiment, workdir: Workdir, model: str = "", decoding: Decoding | None = None) -> None:
    """Write one line to standard output for every line of standard input, in order; an empty line stays empty.

    Line breaks in a generated text are written as escapes (`one_line`).

    Args:
      experiment: the experiment that the workdir was made with.
      workdir: a run with trained models.
      model: "teacher" or a student's name; "" for the distilled student.
      decoding: how texts are written; None for the task's decoding without beam search.

    Raises:
      KdError: if there is no such model, a stream is closed, or a line cannot be a prompt.
    """
    name = resolve_model_name(experiment, model)
    for stream, title in ((sys.stdin, "input"), (sys.stdout, "output")):
        if stream is None:
            raise KdError(f"standard {title}: expected an open stream, got a closed one. Use /dev/null for no text.")
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
        shown = printable if sys.stdout.isatty() else str
        sys.stdout.write("".join(shown(one_line(texts.get(number, ""))) + "\n" for number, _ in numbered))
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


def one_line(text: str) -> str:
    r"""Return a text with escapes such as \n in place of the characters at which a reader may break lines.

    Examples:
      >>> one_line("one\ntwo\u2028three")
      'one\\ntwo\\u2028three'
    """
    return LINE_BREAKS.sub(lambda match: repr(match[0])[1:-1], text)


def read_batches(stream: BinaryIO, prompt: str) -> Iterator[Sequence[tuple[int, str]]]:
    """Yield (number, line) of the lines of a stream in batches; at a terminal, prompt for one line at a time.

    A byte order mark at the start is removed.
    """
    interactive = stream.isatty()
    numbered = enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1)
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
    where = f"standard input, line {number}"
    if len(line) > MAX_LINE:
        raise KdError(f"{where}: expected at most {MAX_LINE:,} bytes, got more. Split it into several lines.")
    if number == 1:
        if found := find_format("", line):
            raise KdError(f"{where}: expected UTF-8 text, got {found[0]}. Convert it first.")
        if not line.endswith(b"\n") and b"\r" in line.rstrip(b"\r"):
            raise KdError(f"{where}: expected newlines, got carriage returns alone. Convert it with tr '\\r' '\\n'.")
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise KdError(f"{where}: expected UTF-8, got other bytes. Convert it with iconv.") from error
