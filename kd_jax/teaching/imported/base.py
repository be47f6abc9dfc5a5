"""What a person says of stored log-probabilities, and what an experiment asks of them."""

import dataclasses
from typing import Literal, NamedTuple

from kd_jax.config import is_number
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment, required_signals
from kd_jax.signals.topk import TopK
from kd_jax.teaching.imported.readers.formats import FORMATS

REMEDY = "take init=Random() or FromCheckpoint, the data's targets, and TopK as the only signal, or leave it out"


@dataclasses.dataclass(frozen=True)
class LogprobSource:
    """How files of log-probabilities came to be; no format records it, so a person states it.

    Attributes:
      format: one of FORMATS.
      temperature: T of the softmax that they are of.
      mode: "raw" for the model's own distribution, of temperature 1; "processed" for what a sampler made of it by
        temperature, top k, top p or penalties.
      sequence: "whole" where the files' token ids are prompt and completion, "completion" where an encoder read the
        prompt and they are the decoder's.
      missing: share of the targets that the files may say nothing of; the teacher's terms are 0 there.
      sum_error: how much above one a position's probabilities may add up to.

    Examples:
      >>> LogprobSource("vllm", temperature=0.7, mode="raw").check()
      Traceback (most recent call last):
      kd_jax.errors.KdError: --temperature 0.7: raw log-probabilities are those of temperature 1, whatever was drawn; \
wanted 1, or --mode processed
    """

    format: str
    temperature: float
    mode: Literal["raw", "processed"]
    sequence: Literal["whole", "completion"] = "whole"
    missing: float = 0.0
    sum_error: float = 1e-3

    def check(self) -> None:
        """Raises KdError naming the option that is out of its range."""
        choices = {"format": tuple(FORMATS), "mode": ("raw", "processed"), "sequence": ("whole", "completion")}
        for field, values in choices.items():
            if vars(self)[field] not in values:
                raise KdError(f"--{field} {vars(self)[field]}: unknown; wanted {', '.join(values)}")
        if not (is_number(self.temperature) and self.temperature > 0):
            raise KdError(f"--temperature {self.temperature}: wanted a positive number")
        if self.mode == "raw" and self.temperature != 1:
            raise KdError(
                f"--temperature {self.temperature:g}: raw log-probabilities are those of temperature 1, whatever was "
                "drawn; wanted 1, or --mode processed"
            )
        for field in ("missing", "sum_error"):
            if not (is_number(vars(self)[field]) and 0 <= vars(self)[field] <= 1):
                raise KdError(f"--{field.replace('_', '-')} {vars(self)[field]}: wanted a number from 0 to 1")

    def says(self, temperature: float) -> bool:
        """Whether the mass of the tokens that a position does not name follows from those that it names."""
        return FORMATS[self.format].normalised and temperature == self.temperature


class RequiredSignal(NamedTuple):
    """What is read out of the files for one split.

    Attributes:
      signal: whose fields are stored.
      rests: each temperature at which the mass outside the k is needed, and what needs it.
    """

    signal: TopK
    rests: dict[float, str]

    def stored(self, source: LogprobSource) -> tuple[float, ...]:
        """The temperatures at which the rest is kept, ascending: the needed, and what the files say of themselves."""
        said = {source.temperature} if source.says(source.temperature) else set()
        return tuple(sorted({*self.rests, *said}))


def wanted_of(experiment: ResolvedExperiment) -> RequiredSignal:
    """The TopK that the students' terms read.

    Raises:
      KdError: names a student that needs more of a teacher than log-probabilities, or that there is none to teach.
    """
    rests = {}
    for name, recipe in experiment.students.items():
        if recipe.init.origin == "teacher":
            raise KdError(f"students.{name}.init: FromTeacher, but the teacher's parameters are elsewhere; {REMEDY}")
        if recipe.targets:
            raise KdError(f"students.{name}.targets: written by the teacher, which is elsewhere; {REMEDY}")
        for key, term in recipe.terms.items():
            field = f"students.{name}.terms.{key}.signal"
            if term.signal is not None and type(term.signal) is not TopK:
                raise KdError(f"{field}: stored log-probabilities say TopK alone; {REMEDY}")
            if term.signal is not None and term.signal.tail != "renormalise":
                rests[term.signal.temperature] = f"{field} (tail {term.signal.tail!r}, T {term.signal.temperature:g})"
    signals = required_signals(experiment)
    if not any(signals.values()):
        raise KdError("students: no term reads TopK, so log-probabilities would teach nobody; add such a term")
    return RequiredSignal(signals[None][TopK.name], rests)


def wanted_of_validation(experiment: ResolvedExperiment, vocab_size: int) -> RequiredSignal:
    """The TopK for closeness without a teacher, as many of its k as the files have."""
    k = min(experiment.evaluation.cached_k, vocab_size)
    return RequiredSignal(TopK(k=k), {1.0: "evaluation.cached_k (0 for no closeness to the teacher)"})
