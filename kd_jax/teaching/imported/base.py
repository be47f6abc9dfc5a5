"""The source of stored log-probabilities as its user states it, and the signal that an experiment requires."""

import dataclasses
from typing import Literal, NamedTuple, get_args

from kd_jax.batches.on_policy import Rounds
from kd_jax.batches.targets import TrainTargets
from kd_jax.config import is_number
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, Recipe, required_signals
from kd_jax.objective.terms import cached_signals
from kd_jax.signals.topk import TopK
from kd_jax.students.init import FromTeacher
from kd_jax.teaching.imported.readers.formats import FORMATS

Mode = Literal["raw", "processed"]
SequenceKind = Literal["whole", "completion"]
MODE_REMEDY = "Set 1, or --mode processed."
REMEDY = (
    "Use init=Random() or FromCheckpoint, the data's targets or Rounds, and TopK as the only signal; or remove the "
    "student."
)


@dataclasses.dataclass(frozen=True)
class LogprobSource:
    """How files of log-probabilities were made; no format records it, so the user states it.

    Attributes:
      format: one of FORMATS.
      temperature: T of the softmax whose log-probabilities the files hold.
      mode: "raw" for the model's own distribution, of temperature 1; "processed" for the distribution that a sampler
        made of it by temperature, top k, top p or penalties.
      sequence: "whole" if the files' token ids are prompt and completion; "completion" if they are the decoder's alone,
        and an encoder read the prompt.
      missing: largest share of the targets that may be missing in the files; the teacher's terms are 0 there.
      sum_error: how much the sum of a position's probabilities may exceed one.

    Examples:
      >>> LogprobSource("vllm", temperature=0.7, mode="raw").check()
      Traceback (most recent call last):
      kd_jax.errors.KdError: --temperature: expected 1 for raw log-probabilities, got 0.7. Set 1, or --mode processed.
    """

    format: str
    temperature: float
    mode: Mode
    sequence: SequenceKind = "whole"
    missing: float = 0.0
    sum_error: float = 1e-3

    def check(self) -> None:
        """Check the fields."""
        choices = {"format": tuple(FORMATS), "mode": get_args(Mode), "sequence": get_args(SequenceKind)}
        for field, values in choices.items():
            value = getattr(self, field)
            if value not in values:
                raise KdError(f"--{field}: expected one of {', '.join(values)}, got {value}. Set --{field}.")
        if not (is_number(self.temperature) and self.temperature > 0):
            raise KdError(f"--temperature: expected a positive number, got {self.temperature}. Set --temperature.")
        if self.mode == "raw" and self.temperature != 1:
            raise KdError(
                f"--temperature: expected 1 for raw log-probabilities, got {self.temperature:g}. {MODE_REMEDY}"
            )
        for field in ("missing", "sum_error"):
            value, option = getattr(self, field), f"--{field.replace('_', '-')}"
            if not (is_number(value) and 0 <= value <= 1):
                raise KdError(f"{option}: expected a number from 0 to 1, got {value}. Set {option}.")

    def knows_rest(self, temperature: float) -> bool:
        """Return whether the mass of the tokens that a position does not name follows from those that it names."""
        return FORMATS[self.format].normalised and temperature == self.temperature


class RequiredSignal(NamedTuple):
    """The signal that is read from the files for one split.

    `rests` is temperature at which the mass outside the k is needed -> the field that needs it.
    """

    signal: TopK
    rests: dict[float, str]

    def rest_temperatures(self, source: LogprobSource) -> tuple[float, ...]:
        """Return the temperatures at which the rest is stored, ascending: those needed, and the source's own."""
        known = {source.temperature} if source.knows_rest(source.temperature) else set()
        return tuple(sorted({*self.rests, *known}))


def required_signal(experiment: Experiment) -> RequiredSignal | None:
    """Return the TopK that the students' terms read from the training split; any other need is an error.

    None if only students in rounds read one: `required_round_signal` has that of each.
    """
    rests: dict[float, str] = {}
    for name, recipe in experiment.students.items():
        needed = _needed_rests(name, recipe)
        if not isinstance(recipe.targets, Rounds):
            rests |= needed
    if not any(cached_signals(recipe.terms) for recipe in experiment.students.values()):
        raise KdError("students: expected a term that reads TopK, got none. Add a term with signal=TopK().")
    signal = required_signals(experiment).get(TrainTargets(), {}).get(TopK.name)
    assert signal is None or isinstance(signal, TopK)
    return signal and RequiredSignal(signal, rests)


def required_round_signal(experiment: Experiment, name: str) -> RequiredSignal:
    """Return the TopK that the terms of a student read from the texts of its rounds."""
    recipe = experiment.students[name]
    signal = cached_signals(recipe.terms)[TopK.name]
    assert isinstance(signal, TopK)
    return RequiredSignal(signal, _needed_rests(name, recipe))


def _needed_rests(name: str, recipe: Recipe) -> dict[float, str]:
    """Return RequiredSignal.rests of a student; raise KdError if it needs more of the teacher than TopK."""
    rests: dict[float, str] = {}
    if isinstance(recipe.init, FromTeacher):
        expected = "a start without the imported teacher's parameters"
        raise KdError(f"students.{name}.init: expected {expected}, got FromTeacher. {REMEDY}")
    if recipe.pseudo_targets or (recipe.targets and not isinstance(recipe.targets, Rounds)):
        kind = type(recipe.targets).__name__
        kind = "Rounds with texts of the teacher" if isinstance(recipe.targets, Rounds) else kind
        raise KdError(f"students.{name}.targets: expected the data's targets or Rounds, got {kind}. {REMEDY}")
    for key, term in recipe.terms.items():
        field, signal = f"students.{name}.terms.{key}.signal", term.signal
        if signal is None:
            continue
        if not isinstance(signal, TopK):
            raise KdError(f"{field}: expected TopK, got {type(signal).__name__}. {REMEDY}")
        if signal.tail != "renormalise":
            rests[signal.temperature] = f"{field} (tail {signal.tail!r}, T {signal.temperature:g})"
    return rests


def required_validation_signal(experiment: Experiment, vocab_size: int) -> RequiredSignal:
    """Return the TopK from which the closeness to an absent teacher is computed, of at most the files' k."""
    k = min(experiment.evaluation.cached_k, vocab_size)
    return RequiredSignal(TopK(k=k), {1.0: "evaluation.cached_k (0 for no closeness to the teacher)"})
