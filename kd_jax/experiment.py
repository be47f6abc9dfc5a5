"""The frozen dataclass that one experiment file builds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.data.layouts import Bucket
from kd_jax.data.pseudo_targets import PseudoTargets
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.init import FromCheckpoint, FromTeacher, Random
from kd_jax.objective.terms import Term, cached_signals
from kd_jax.optim.optimizer import Optimizer
from kd_jax.signals.base import Signal

Start = FromTeacher | FromCheckpoint | Random


@dataclasses.dataclass(frozen=True)
class Training:
    """How long and in what portions a model is trained.

    Attributes:
      steps: parameter updates.
      tokens_per_batch: padded target tokens of a batch; a bucket of length T holds tokens_per_batch // T examples.
      microbatches: portions of a batch whose gradients are added before one update.
      eval_every: steps between evaluations on the validation split, each followed by a checkpoint.
      optimizer: schedule and update rule.
    """

    steps: int
    tokens_per_batch: int = 512
    microbatches: int = 1
    eval_every: int = 500
    optimizer: Optimizer = Optimizer()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model and how it comes to its parameters; a teacher and a student are both one.

    Attributes:
      model: hyper-parameters of the network.
      init: where the first parameters come from.
      terms: the objective, by name.
      training: steps, batches, optimiser.
      targets: None for those of the data, or PseudoTargets for what the teacher writes (a student's only).
    """

    model: EncoderDecoder
    terms: Mapping[str, Term]
    training: Training
    init: Start = Random()
    targets: PseudoTargets | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured on the test split.

    Attributes:
      split: the split that is translated.
      batch_size: sentences decoded together.
      beam: width of the beam search, 1 for none.
      length_penalty: exponent of GNMT's length normalisation (arXiv 1609.08144, eq. 14).
      length_ratio: target tokens allowed per source token when decoding, on top of 8.
      bootstrap: resamples of the test split for the confidence intervals.
      speed_sentences: sentences decoded to time each model at batch 1; batches use the whole split.
      samples: translations shown side by side in the report.
      cached_k: tokens that the validation split's cache keeps of the teacher, for closeness measured
        without it (KL, agreement, acceptance); 0 for no such cache.
    """

    split: str = "test"
    batch_size: int = 64
    beam: int = 4
    length_penalty: float = 0.6
    length_ratio: float = 1.5
    bootstrap: int = 1000
    speed_sentences: int = 32
    samples: int = 8
    cached_k: int = 128


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Which students the headline is about; every other student is a control.

    Attributes:
      baseline: the student without a teacher: gap_recovered counts from it.
      distilled: the student that the teacher's knowledge was given to.
    """

    baseline: str
    distilled: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides a run; `seed` alone decides its chance.

    Attributes:
      name: shown in the report.
      source: where raw examples come from (kd_jax.data.sources).
      task: fields, encoding and metrics (kd_jax.tasks).
      tokenizer: kd_jax.data.tokenizers.SentencePiece, trained on the training split.
      buckets: padded lengths of the completion; one compilation each. Longer training examples are left out
        and counted.
      teacher: the large model.
      students: name -> recipe.
      comparison: which of them the report's headline is about; None for the best.
      evaluation: what is measured.
      prompt_buckets: padded length of the prompt beside each of `buckets`; empty for the same lengths.
      backend: how steps are spread over devices (kd_jax.parallel.BACKENDS); the numbers are the same.
      seed: decides parameters, order and dropout.
    """

    name: str
    source: Any
    task: Any
    tokenizer: Any
    buckets: tuple[int, ...]
    teacher: Recipe
    students: Mapping[str, Recipe]
    comparison: Comparison | None = None
    evaluation: Evaluation = Evaluation()
    prompt_buckets: tuple[int, ...] = ()
    backend: str = "auto"
    seed: int = 0

    @property
    def shapes(self) -> tuple[Bucket, ...]:
        """Padded lengths of prompt and completion, ascending."""
        return tuple(map(Bucket, self.prompt_buckets or self.buckets, self.buckets))

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Name -> recipe of every model, the teacher first."""
        return {TEACHER: self.teacher, **self.students}


def wanted_signals(experiment: Experiment) -> dict[PseudoTargets | None, dict[str, Signal]]:
    """For the data and for each kind of the teacher's own targets: the signals that some student's term reads."""
    terms: dict[PseudoTargets | None, dict[str, Term]] = {}
    for name, recipe in experiment.students.items():
        of_targets = terms.setdefault(recipe.targets, {})
        of_targets |= {f"{name}.{key}": term for key, term in recipe.terms.items()}
    return {targets: cached_signals(of_targets) for targets, of_targets in terms.items()}


def targets_name(targets: PseudoTargets | None) -> str:
    """Names the folder of the training split with these targets; "" for those of the data."""
    return targets.name if targets else ""
