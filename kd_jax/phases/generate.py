"""Translate standard input with a trained model, line by line, to standard output."""

import difflib
import functools
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kd_jax.artifacts import checkpoint, manifest
from kd_jax.data.pipeline import padded_lengths
from kd_jax.data.tokenizers import EOS, Tokenizer
from kd_jax.decoding.text import to_text, translate_step
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment
from kd_jax.parallel.base import parallel
from kd_jax.types import Batch

BATCH = 64


def run(experiment: Experiment, workdir: Path, model: str = "", beam: int = 1) -> None:
    """Translates every line, in order; an empty line stays empty.

    Args:
      experiment, workdir: a finished run.
      model: "teacher" or a student's name; empty for "student_kd", or else the last student.
      beam: width of the beam search; 1 for greedy.

    Raises:
      KdError: for an unknown model, one that is not trained, a beam below 1, or input that is not UTF-8.
    """
    if beam < 1:
        raise KdError(f"--beam {beam}: wanted 1 (greedy) or more")
    name = model or default_model(experiment)
    if name not in ("teacher", *experiment.students):
        near = difflib.get_close_matches(name, ("teacher", *experiment.students), 1, 0.0)
        raise KdError(f"--model {name}: no such model; did you mean {' '.join(near)}?")
    recipe = experiment.teacher if name == "teacher" else experiment.students[name]
    folder, phase = (workdir / "teacher", "teacher") if name == "teacher" else (workdir / "students" / name, "student")
    tokenizer = Tokenizer(workdir / "data" / "tokenizer.model")
    trained_with = manifest.read(folder, phase)["inputs"]["consumed.tokenizer"]
    if tokenizer.digest() != trained_with:
        raise KdError(
            f"{workdir}/data/tokenizer.model is not the tokeniser that {name} was trained with; redo `prepare`"
        )
    network = recipe.model.build(tokenizer.vocab_size)
    spread = parallel("jit")
    params = spread.replicate(checkpoint.load_params(folder, phase, network))
    step = functools.partial(translate_step, model=network, beam=beam, evaluation=experiment.evaluation)
    step = spread.spread(step)
    for lines in waiting_lines(sys.stdin.buffer):
        encoded = [[*tokenizer.encode(line), EOS] for line in lines]
        padded = padded_lengths(np.asarray([len(ids) for ids in encoded]), experiment.buckets)
        written = [""] * len(lines)
        for length in np.unique(padded):
            places = [i for i in np.flatnonzero(padded == length) if lines[i].strip()]
            if places:
                ids_BT = spread.gather(
                    step(params, spread.shard(source_batch([encoded[i] for i in places], int(length))))
                )
                for i, ids in zip(places, ids_BT, strict=False):
                    written[i] = to_text(ids, tokenizer)
        sys.stdout.write("".join(line + "\n" for line in written))
        sys.stdout.flush()


def default_model(experiment: Experiment) -> str:
    """ "student_kd" if there is one, else the last student, else the teacher."""
    names = list(experiment.students)
    return "student_kd" if "student_kd" in names else names[-1] if names else "teacher"


def source_batch(encoded: list[list[int]], length: int) -> Batch:
    """Sources as a Batch of 1 or BATCH rows, so that few shapes are compiled; nothing but the source is real."""
    rows = 1 if len(encoded) == 1 else BATCH
    ids, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
    for row, source in enumerate(encoded):
        ids[row, : len(source)], mask[row, : len(source)] = source, True
    nothing = np.zeros((rows, length), np.int32)
    return Batch(np.full(rows, -1, np.int32), ids, mask, nothing, nothing, nothing > 0, np.ones(rows, np.float32), {})


def waiting_lines(stream: BinaryIO) -> Iterator[list[str]]:
    """The lines that wait on `stream`, BATCH at once; a person at a terminal is answered line by line."""
    most = 1 if stream.isatty() else BATCH
    numbered = enumerate(stream, 1)
    while raw := list(itertools.islice(numbered, most)):
        yield [_decoded(number, line) for number, line in raw]


def _decoded(number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise KdError(f"standard input, line {number}: not UTF-8; convert it with iconv") from error
