"""How fast models write: greedy tokens a second, the models in turn on the same prompts."""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from kd_jax.artifacts import runlog
from kd_jax.data.layouts import Bucket
from kd_jax.data.pipeline import EvalBatches, Split, place
from kd_jax.decoding.base import PAD
from kd_jax.evaluation.contenders import Contender, Programs
from kd_jax.experiment import Evaluation
from kd_jax.parallel import devices as devices_of
from kd_jax.parallel.base import Devices
from kd_jax.types import Inputs, Params

REPEATS = 5


def decoding_speeds(
    evaluation: Evaluation,
    contenders: list[Contender],
    programs: Programs,
    split: Split,
    shapes: tuple[Bucket, ...],
    devices: Devices,
) -> dict[str, dict[str, float]]:
    """Greedy tokens a second of every model, in batches and one prompt at a time.

    The models take turns on the same prompts, those of the fullest bucket, after a first round that
    compiles; medians over the repeats. The end of the text counts as a token.
    """
    places = place(split.lengths, shapes)
    members = np.flatnonzero(places == np.bincount(places, minlength=len(shapes))[: len(shapes)].argmax())
    figures: dict[str, dict[str, float]] = {contender.name: {} for contender in contenders}
    for suffix, where, size, count in (
        ("", devices, evaluation.batch_size, 4 * evaluation.batch_size),
        ("_single", devices_of("jit"), 1, evaluation.speed_sentences),
    ):
        chosen = members[:count]
        calls = {}
        for contender in contenders:
            batches = EvalBatches(split, contender.architecture.layout, shapes, size, where.count, chosen)
            prompts = [where.cut(batches.prompts(i)) for i in range(len(batches))]
            write = programs.write(contender.architecture, 1, where)
            calls[contender.name] = functools.partial(_timed, write, where.put(contender.params), prompts, where)
        for name, (seconds, tokens) in _medians(calls, f"time{suffix.replace('_', ' ')} decoding").items():
            figures[name][f"decode_tokens_per_second{suffix}"] = tokens / seconds
            figures[name][f"decode_sentences_per_second{suffix}"] = len(chosen) / seconds
    return figures


def _medians(calls: dict[str, Callable[[], tuple[float, int]]], title: str) -> dict[str, tuple[float, int]]:
    """Name -> (median seconds of the calls in turn, tokens)."""
    with runlog.progress(title, (REPEATS + 1) * len(calls)) as bar:
        rounds = []
        for _ in range(REPEATS + 1):
            rounds.append({})
            for name, call in calls.items():
                with bar.meeting(name):
                    rounds[-1][name] = call()
                bar.advance(1)
    # The first round compiled.
    return {
        name: (statistics.median(one[name][0] for one in rounds[1:]), tokens) for name, (_, tokens) in rounds[0].items()
    }


def _timed(write: Callable, params: Params, prompts: list[Inputs], devices: Devices) -> tuple[float, int]:
    """(seconds until all prompts are answered, tokens written)."""
    began = time.perf_counter()
    written = jax.block_until_ready([write(params, batch) for batch in prompts])
    seconds = time.perf_counter() - began
    return seconds, sum(int((devices.gather(ids) != PAD).sum()) for ids in written)
