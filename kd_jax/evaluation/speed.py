"""How fast models write: tokens a second, the models in turn on the same prompts."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from kd_jax.batches.pipeline import PromptBatches
from kd_jax.decoding.base import NO_TOKEN, suppress
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.speculative import Side, Speculated, speculative
from kd_jax.decoding.text import output_length
from kd_jax.evaluation.candidates import Candidate, Programs
from kd_jax.experiment import Evaluation
from kd_jax.runtime import progress
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.devices import Devices
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.types import Array, Inputs, Params

REPEATS = 5


def decoding_speeds(
    evaluation: Evaluation,
    candidates: list[Candidate],
    programs: Programs,
    prompts: Sequence[np.ndarray],
    widths: Sequence[int],
    tokenizer: Tokenizer,
    way: str,
    devices: Devices,
) -> dict[str, dict[str, float]]:
    """Tokens a second of every model, in batches and one prompt at a time.

    The models take turns on the same prompts, those of the commonest padded length, after a first round that
    compiles; medians over the repeats. The end of the text counts as a token.

    Args:
      evaluation: how many prompts.
      candidates, programs: the models, and their compiled functions.
      prompts: token ids of each, int32 [P].
      widths: padded lengths, ascending.
      tokenizer: which says what decoding begins with.
      way: how they are written.
      devices: for batches; one prompt at a time runs on one.
    """
    members = _of_the_commonest_length(prompts, widths)
    figures: dict[str, dict[str, float]] = {candidate.name: {} for candidate in candidates}
    for suffix, where, size, count in (
        ("", devices, evaluation.batch_size, 4 * evaluation.batch_size),
        ("_single", make_devices("jit"), 1, evaluation.speed_texts),
    ):
        chosen = members[:count]
        calls = {}
        for candidate in candidates:
            layout = candidate.architecture.layout(tokenizer.start, tokenizer.forced_prefix)
            batches = PromptBatches([prompts[i] for i in chosen], layout, widths, size, where.count, chosen)
            write, params = programs.write(candidate.architecture, way, where), programs.put(candidate, where)
            calls[candidate.name] = functools.partial(_timed, write, params, list(map(where.cut, batches)), where)
        for name, (seconds, tokens) in _medians(calls, f"time{suffix.replace('_', ' ')} decoding").items():
            figures[name][f"decode_tokens_per_second{suffix}"] = tokens / seconds
            figures[name][f"decode_texts_per_second{suffix}"] = len(chosen) / seconds
    return figures


def drafting_speed(
    evaluation: Evaluation,
    teacher: Candidate,
    student: Candidate,
    prompts: Sequence[np.ndarray],
    widths: Sequence[int],
    tokenizer: Tokenizer,
    decoding: Decoding,
) -> dict[str, float]:
    """How fast the teacher writes its own greedy texts from a student's drafts, one prompt at a time.

    Args:
      evaluation: tokens drafted a round, and how many prompts.
      teacher, student: of one family.
      prompts, widths, tokenizer: as `decoding_speeds`.
      decoding: how long a text may be.

    Returns:
      "draft_tokens" of a round; "draft_acceptance", accepted over drafted tokens; "draft_tokens_per_second"; and
      "draft_speedup", the teacher's seconds alone over those with drafts, in turn on the same prompts, medians.
    """
    where = make_devices("jit")
    chosen = _of_the_commonest_length(prompts, widths)[: evaluation.speed_texts]
    layout = teacher.architecture.layout(tokenizer.start, tokenizer.forced_prefix)
    batches = list(map(where.cut, PromptBatches([prompts[i] for i in chosen], layout, widths, 1, 1, chosen)))
    length = min(output_length(decoding, one.architecture, batches[0]) for one in (teacher, student))
    ends = {"eos": tokenizer.eos, "length": length}
    models = [
        suppress(one.architecture.build(tokenizer.vocab_size), tokenizer.suppress_tokens) for one in (teacher, student)
    ]

    def alone(params: tuple[Params, Params], inputs: Inputs) -> Array:
        return greedy(models[0], params[0], inputs, **ends)

    def drafted(params: tuple[Params, Params], inputs: Inputs) -> Speculated:
        sides = map(Side, models, params)
        return speculative(*sides, inputs, drafts=evaluation.draft, **ends)

    params = where.replicate((teacher.params, student.params))
    write = where.compile(drafted)
    calls = {
        "the teacher alone": functools.partial(_timed, where.compile(alone), params, batches, where),
        "with drafts": functools.partial(_timed, lambda *both: write(*both).ids_BT, params, batches, where),
    }
    (alone_seconds, _), (seconds, tokens) = _medians(calls, "time speculative decoding").values()
    rounds = [jax.device_get(write(params, batch)) for batch in batches]
    drafted_tokens, accepted = (sum(int(one[i].sum()) for one in rounds) for i in (1, 2))
    return {
        "draft_tokens": evaluation.draft,
        "draft_acceptance": accepted / max(drafted_tokens, 1),
        "draft_tokens_per_second": tokens / seconds,
        "draft_speedup": alone_seconds / seconds,
    }


def _of_the_commonest_length(prompts: Sequence[np.ndarray], widths: Sequence[int]) -> np.ndarray:
    """The places of the prompts whose padded length most have."""
    places = np.searchsorted(widths, [len(prompt) for prompt in prompts])
    commonest = np.bincount(places, minlength=len(widths))[: len(widths)].argmax()
    return np.flatnonzero(places == commonest)


def _medians(calls: dict[str, Callable[[], tuple[float, int]]], title: str) -> dict[str, tuple[float, int]]:
    """Name -> (median seconds of the calls in turn, tokens)."""
    with progress.bar(title, (REPEATS + 1) * len(calls)) as bar:
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
    return seconds, sum(int((devices.to_host(ids) != NO_TOKEN).sum()) for ids in written)
