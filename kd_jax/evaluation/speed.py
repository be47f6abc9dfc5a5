"""Time decoding: candidates take turns on the same prompts."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from kd_jax.batches.pipeline import PromptBatches
from kd_jax.decoding.base import NO_TOKEN, suppress
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.speculative import BoundModel, SpeculativeOutput, speculative
from kd_jax.decoding.text import output_length
from kd_jax.evaluation.candidates import Candidate, Programs
from kd_jax.evaluation.figures import DecodingSpeed, DraftingFigures
from kd_jax.experiment import Evaluation
from kd_jax.runtime import progress
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.devices import Devices
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.types import Array, Inputs, Params

REPEATS = 5


class Timing(NamedTuple):
    """Seconds to write the texts of some prompts, and the tokens written, end tokens included."""

    seconds: float
    tokens: int


def decoding_speeds(
    evaluation: Evaluation,
    candidates: Sequence[Candidate],
    programs: Programs,
    prompts: Sequence[np.ndarray],
    widths: Sequence[int],
    tokenizer: Tokenizer,
    way: str,
    devices: Devices,
) -> dict[str, DecodingSpeed]:
    """Time every candidate in batches and one prompt at a time, the latter on one device.

    The prompts are those of the most common padded length. A first round compiles and is not timed; the figures are
    medians over REPEATS rounds. End tokens count.
    """
    indices = _most_common_width(prompts, widths)

    def timings(title: str, devices: Devices, batch_size: int, chosen: Sequence[int]) -> dict[str, Timing]:
        calls = {}
        for candidate in candidates:
            layout = candidate.architecture.layout(tokenizer.start, tokenizer.forced_prefix)
            batches = PromptBatches([prompts[i] for i in chosen], layout, widths, batch_size, devices.count, chosen)
            calls[candidate.name] = functools.partial(
                _time_once,
                programs.write(candidate.architecture, way, devices),
                programs.replicate_params(candidate, devices),
                [devices.shard(batch) for batch in batches],
                devices,
            )
        return _median_timings(calls, title)

    in_batches, single = indices[: 4 * evaluation.batch_size], indices[: evaluation.speed_texts]
    batch_timings = timings("time decoding", devices, evaluation.batch_size, in_batches)
    single_timings = timings("time single decoding", make_devices("jit"), 1, single)
    return {
        name: DecodingSpeed(
            decode_tokens_per_second=batch_timings[name].tokens / batch_timings[name].seconds,
            decode_texts_per_second=len(in_batches) / batch_timings[name].seconds,
            decode_tokens_per_second_single=single_timings[name].tokens / single_timings[name].seconds,
            decode_texts_per_second_single=len(single) / single_timings[name].seconds,
        )
        for name in batch_timings
    }


def drafting_speed(
    evaluation: Evaluation,
    teacher: Candidate,
    student: Candidate,
    prompts: Sequence[np.ndarray],
    widths: Sequence[int],
    tokenizer: Tokenizer,
    decoding: Decoding,
) -> DraftingFigures:
    """Time the teacher's greedy decoding with a student's drafts, one prompt at a time.

    With and without drafts take turns on the same prompts; the figures are medians. Both models are of one family.
    """
    devices = make_devices("jit")
    indices = _most_common_width(prompts, widths)[: evaluation.speed_texts]
    layout = teacher.architecture.layout(tokenizer.start, tokenizer.forced_prefix)
    prompt_batches = PromptBatches([prompts[i] for i in indices], layout, widths, 1, 1, indices)
    batches = [devices.shard(batch) for batch in prompt_batches]
    eos, drafts = tokenizer.ends, evaluation.draft
    length = min(output_length(decoding, model.architecture, batches[0]) for model in (teacher, student))
    teacher_model, student_model = (
        suppress(model.architecture.build(tokenizer.vocab_size), tokenizer.suppress_tokens)
        for model in (teacher, student)
    )

    def without_drafts(params: tuple[Params, Params], inputs: Inputs) -> Array:
        return greedy(teacher_model, params[0], inputs, eos=eos, length=length)

    def with_drafts(params: tuple[Params, Params], inputs: Inputs) -> SpeculativeOutput:
        sides = BoundModel(teacher_model, params[0]), BoundModel(student_model, params[1])
        return speculative(*sides, inputs, eos=eos, length=length, drafts=drafts)

    params = devices.replicate((teacher.params, student.params))
    write = devices.compile(with_drafts)
    calls = {
        "without drafts": functools.partial(_time_once, devices.compile(without_drafts), params, batches, devices),
        "with drafts": functools.partial(_time_once, lambda *args: write(*args).ids_BT, params, batches, devices),
    }
    timings = _median_timings(calls, "time speculative decoding")
    texts: list[SpeculativeOutput] = [jax.device_get(write(params, batch)) for batch in batches]
    drafted = sum(int(text.drafted_B.sum()) for text in texts)
    accepted = sum(int(text.accepted_B.sum()) for text in texts)
    seconds, tokens = timings["with drafts"]
    return DraftingFigures(
        draft_tokens=drafts,
        draft_acceptance=accepted / max(drafted, 1),
        draft_tokens_per_second=tokens / seconds,
        draft_speedup=timings["without drafts"].seconds / seconds,
    )


def _most_common_width(prompts: Sequence[np.ndarray], widths: Sequence[int]) -> list[int]:
    """Return the indices of the prompts whose padded length is the most common one."""
    places = np.searchsorted(widths, [len(prompt) for prompt in prompts])
    most_common = np.bincount(places, minlength=len(widths))[: len(widths)].argmax()
    return np.flatnonzero(places == most_common).tolist()


def _median_timings(calls: Mapping[str, Callable[[], Timing]], title: str) -> dict[str, Timing]:
    """Return each call's median seconds over REPEATS rounds, after a first round that compiles."""
    with progress.bar(title, (REPEATS + 1) * len(calls)) as bar:
        rounds: list[dict[str, Timing]] = []
        for _ in range(REPEATS + 1):
            rounds.append({})
            for name, call in calls.items():
                with bar.compiling_once(name):
                    rounds[-1][name] = call()
                bar.advance(1)
    return {
        name: Timing(statistics.median(timed[name].seconds for timed in rounds[1:]), first.tokens)
        for name, first in rounds[0].items()
    }


def _time_once(write: Callable, params: Params, batches: Sequence[Inputs], devices: Devices) -> Timing:
    """Time writing the texts of all prompts once."""
    began = time.perf_counter()
    texts = jax.block_until_ready([write(params, batch) for batch in batches])
    seconds = time.perf_counter() - began
    return Timing(seconds, sum(int((devices.to_host(ids) != NO_TOKEN).sum()) for ids in texts))
