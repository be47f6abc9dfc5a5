"""Answer standard input with a trained model, line by line, on standard output."""

import difflib
import functools
import itertools
import sys
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from kd_jax.artifacts import checkpoint
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.data.layouts import Bucket
from kd_jax.data.pipeline import LONGEST, padded_lengths, rows_within
from kd_jax.data.tokenizers import Tokenizer
from kd_jax.decoding.text import to_text, write
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment
from kd_jax.parallel import devices

BATCH = 64


def run(experiment: Experiment, workdir: Workdir, model: str = "", beam: int = 1) -> None:
    """Writes one line for every line read, in order; an empty line stays empty.

    Args:
      experiment: as the workdir keeps it.
      workdir: of a run with trained models.
      model: "teacher" or a student's name; "" for the distilled student.
      beam: width of the beam search; 1 for greedy.

    Raises:
      KdError: if there is no such model, or a line cannot be read.
    """
    name = model or default_model(experiment)
    if name not in experiment.recipes:
        near = difflib.get_close_matches(name, experiment.recipes, 1, 0.0)
        raise KdError(f"--model {name}: no such model; did you mean {near[0]}?")
    if beam < 1:
        raise KdError(f"--beam {beam}: wanted at least 1")
    folder, tokenizer = workdir.model(name), Tokenizer(workdir.model(name).file("tokenizer.model"))
    if tokenizer.digest() != folder.inputs()["consumed.tokenizer"]:
        raise KdError(f"{folder.path}/tokenizer.model is not the tokeniser that {name} was trained with")
    architecture, spread = experiment.recipes[name].model, devices("jit")
    network = architecture.build(tokenizer.vocab_size)
    params = spread.put(checkpoint.load_params(folder, network.init))
    step = spread.compile(functools.partial(write, model=network, beam=beam, evaluation=experiment.evaluation))
    for numbered in waiting_lines(sys.stdin.buffer, f"{name}> "):
        encoded = [experiment.task.encode_prompt(line, tokenizer) for _, line in numbered]
        lengths = np.asarray([(len(ids), 1) for ids in encoded])
        if lengths.max() > LONGEST:
            worst = int(lengths.max(-1).argmax())
            raise KdError(
                f"standard input, line {numbered[worst][0]}: {lengths[worst][0]} tokens; wanted at most {LONGEST}"
            )
        padded = padded_lengths(lengths, experiment.shapes)
        written = [""] * len(numbered)
        for bucket in sorted({Bucket(*map(int, one)) for one in padded}):
            places = [i for i in np.flatnonzero((padded == bucket).all(-1)) if numbered[i][1].strip()]
            rows = 1 if len(numbered) == 1 else rows_within(BATCH, 1, bucket)  # so that few shapes are compiled
            for start in range(0, len(places), rows):
                some = places[start : start + rows]
                prompts = architecture.layout.prompts([encoded[i] for i in some], rows, bucket)
                ids_BT = spread.gather(step(params, spread.cut(prompts)))
                for i, ids in zip(some, ids_BT, strict=False):
                    written[i] = to_text(ids, tokenizer)
        sys.stdout.write("".join(line + "\n" for line in written))
        sys.stdout.flush()


def default_model(experiment: Experiment) -> str:
    """The distilled student of the comparison, else the last student, else the teacher."""
    if experiment.comparison:
        return experiment.comparison.distilled
    return [TEACHER, *experiment.students][-1]


def waiting_lines(stream: BinaryIO, prompt: str) -> Iterator[list[tuple[int, str]]]:
    """(number, line) of the lines that wait on `stream`, BATCH at once; a person is asked for one at a time."""
    person = stream.isatty()
    numbered = enumerate(stream, 1)
    while True:
        if person:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        raw = list(itertools.islice(numbered, 1 if person else BATCH))
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
