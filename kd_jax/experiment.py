"""The frozen dataclass that one experiment file builds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.batches.layouts import Bucket
from kd_jax.batches.targets import PseudoTargets
from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.objective.terms import Term, cached_signals
from kd_jax.optim.optimizer import Optimizer
from kd_jax.runtime.mesh import DATA_PARALLEL, Mesh
from kd_jax.signals.base import Signal
from kd_jax.students.init import FromCheckpoint, FromTeacher, Random
from kd_jax.students.pretrained import FromHuggingFace, Smaller

Start = FromTeacher | FromCheckpoint | FromHuggingFace | Random


@dataclasses.dataclass(frozen=True)
class Training:
    """How long and in what portions a model is trained.

    Attributes:
      steps: parameter updates; 0 for a model as it starts, such as a pretrained teacher.
      tokens_per_batch: padded target tokens of a batch; a bucket of length T holds tokens_per_batch // T rows.
      packed: several examples share a row of the last bucket, unseen by each other; else each has one of its own.
      microbatches: portions of a batch whose gradients are added before one update.
      eval_every: steps between evaluations on the validation split, each followed by a checkpoint.
      optimizer: schedule and update rule.

    Examples:
      >>> training = Training(steps=1000, tokens_per_batch=512, optimizer=Optimizer(learning_rate=1e-3))
      >>> training.tokens_per_batch // 16  # examples in a batch of the bucket of length 16
      32
    """

    steps: int
    tokens_per_batch: int = 512
    packed: bool = False
    microbatches: int = 1
    eval_every: int = 500
    optimizer: Optimizer = Optimizer()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model and how it comes to its parameters; a teacher and a student are both one.

    Attributes:
      model: hyper-parameters of the network; None for those of the folder in `init`, Smaller for a student that
        is the teacher but for its sizes.
      init: where the first parameters come from.
      terms: the objective, by name.
      training: steps, batches, optimiser.
      targets: None for those of the data, or PseudoTargets for what the teacher writes (a student's only).

    Examples:
      >>> from kd_jax.losses.cross_entropy import cross_entropy
      >>> teacher = Recipe(EncoderDecoder(), {"ce": Term(cross_entropy)}, Training(steps=1000))
      >>> student = dataclasses.replace(teacher, model=EncoderDecoder(decoder_layers=1), init=FromTeacher())
      >>> teacher.init.origin, student.init.origin, student.model.stacks()
      ('chance', 'teacher', {'encoder': 3, 'decoder': 1})
    """

    model: EncoderDecoder | DecoderOnly | Smaller | None
    terms: Mapping[str, Term]
    training: Training
    init: Start = Random()
    targets: PseudoTargets | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured; how texts are written and scored is the task's to say.

    Attributes:
      split: the split that is measured.
      batch_size: texts written together.
      texts: examples that texts are written for, evenly spread; 0 for all.
      bootstrap: resamples of the examples for the confidence intervals.
      speed_texts: texts written to time each model at batch 1; batches use four of batch_size.
      samples: texts shown side by side in the report.
      cached_k: tokens that the validation split's cache keeps of the teacher, for closeness measured
        without it (KL, agreement, acceptance); 0 for no such cache.
      draft: tokens that the leading student drafts a round, as the teacher's draft in speculative decoding, which is
        timed at batch 1 on `speed_texts`; 0 for none.
      int8: models that are measured once more with int8 weights, beside themselves.

    Examples:
      >>> Evaluation(split="validation", bootstrap=200).samples
      8
      >>> Evaluation(int8=("student_kd",)).in_int8
      {'student_kd_int8': 'student_kd'}
    """

    split: str = "test"
    batch_size: int = 64
    texts: int = 0
    bootstrap: int = 1000
    speed_texts: int = 32
    samples: int = 8
    cached_k: int = 128
    draft: int = 4
    int8: tuple[str, ...] = ()

    @property
    def in_int8(self) -> dict[str, str]:
        """Name with int8 weights -> the trained model whose weights they are."""
        return {f"{name}_int8": name for name in self.int8}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Which students the headline is about; every other student is a control.

    Attributes:
      baseline: the student without a teacher: gap_recovered counts from it.
      distilled: the student that the teacher's knowledge was given to.
      controls: students that `kd_jax ablate` compares every other one with, besides those that it adds.

    Examples:
      >>> bleu = {"teacher": 20.0, "student_scratch": 10.0, "student_init": 17.0, "student_kd": 18.0}
      >>> headline = Comparison(baseline="student_scratch", distilled="student_kd")
      >>> (bleu[headline.distilled] - bleu[headline.baseline]) / (bleu["teacher"] - bleu[headline.baseline])
      0.8
    """

    baseline: str
    distilled: str
    controls: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides a run; `seed` alone decides its chance.

    Attributes:
      name: shown in the report.
      source: where raw examples come from (kd_jax.sources).
      task: fields, encoding and metrics (kd_jax.tasks).
      tokenizer: SentencePiece, trained on the training split, or HuggingFaceTokenizer, a pretrained model's.
      buckets: padded lengths of the completion; one compilation each. Longer training examples are left out
        and counted. A decoder-only model has prompt and completion in one row, so its rows are as long as both.
      teacher: the large model.
      students: name -> recipe.
      comparison: which of them the report's headline is about; None for the best.
      evaluation: what is measured.
      prompt_buckets: padded length of the prompt beside each of `buckets`; empty for the same lengths. Where the
        task has no prompts, those of the beginnings that texts are written from.
      backend: how steps are spread over devices (kd_jax.runtime.backends.BACKENDS); the numbers are the same.
      mesh: how many ways, with backend="mesh": for models that do not fit one device.
      seed: decides parameters, order and dropout.

    Examples:
      >>> from kd_jax import SentencePiece, Toy, Translation, cross_entropy
      >>> recipe = Recipe(EncoderDecoder(), {"ce": Term(cross_entropy)}, Training(steps=1000))
      >>> parts = {"source": Toy(), "task": Translation(), "tokenizer": SentencePiece()}
      >>> experiment = Experiment("mine", **parts, buckets=(12, 32), teacher=recipe, students={"small": recipe})
      >>> list(experiment.recipes), experiment.shapes[0]
      (['teacher', 'small'], Bucket(prompt=12, completion=12))
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
    mesh: Mesh = DATA_PARALLEL
    seed: int = 0

    @property
    def shapes(self) -> tuple[Bucket, ...]:
        """Padded lengths of prompt and completion, ascending."""
        prompts = self.prompt_widths if self.task.prompted else (0,) * len(self.buckets)
        return tuple(map(Bucket, prompts, self.buckets))

    @property
    def prompt_widths(self) -> tuple[int, ...]:
        """Padded lengths of the prompts that texts are written from, ascending."""
        return self.prompt_buckets or self.buckets

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Name -> recipe of every model, the teacher first."""
        return {TEACHER: self.teacher, **self.students}


def resolve(experiment: Experiment) -> Experiment:
    """The experiment with every model written out: as its folder has it, or as the teacher but for its sizes.

    A HuggingFaceTokenizer without a folder is the teacher's; at a Marian model's folder it becomes a MarianTokenizer.

    Raises:
      KdError: if a folder cannot be read, or a model is to be the folder's and there is none.
    """
    tokenizer, teacher = experiment.tokenizer, experiment.teacher
    if tokenizer.pretrained:
        teachers = teacher.init.folder if teacher.init.origin == "folder" else ""
        tokenizer = tokenizer.with_folder(tokenizer.folder or teachers)
    rows = {"vocab_rows": 0} if tokenizer.pretrained and tokenizer.cut else {}
    teacher = _settled(TEACHER, teacher, None, rows)
    students = {name: _settled(name, recipe, teacher, rows) for name, recipe in experiment.students.items()}
    return dataclasses.replace(experiment, tokenizer=tokenizer, teacher=teacher, students=students)


def _settled(name: str, recipe: Recipe, teacher: Recipe | None, rows: Mapping[str, int]) -> Recipe:
    if isinstance(recipe.model, Smaller):
        if teacher is None:
            raise KdError(f"{name}: model: Smaller; wanted a model, or None with init=FromHuggingFace")
        return dataclasses.replace(recipe, model=recipe.model.of(teacher.model))
    if recipe.model is not None:
        return recipe
    if recipe.init.origin != "folder":
        raise KdError(f"{name}: model: None; wanted a model, or init=FromHuggingFace, whose folder has one")
    try:
        return dataclasses.replace(recipe, model=dataclasses.replace(recipe.init.architecture(), **rows))
    except KdError as error:
        raise KdError(f"{name}: {error}") from error


def required_signals(experiment: Experiment) -> dict[PseudoTargets | None, dict[str, Signal]]:
    """For the data and for each kind of the teacher's own targets: the signals that some student's term reads."""
    terms: dict[PseudoTargets | None, dict[str, Term]] = {}
    for name, recipe in experiment.students.items():
        of_targets = terms.setdefault(recipe.targets, {})
        of_targets |= {f"{name}.{key}": term for key, term in recipe.terms.items()}
    return {targets: cached_signals(of_targets) for targets, of_targets in terms.items()}


def targets_name(targets: PseudoTargets | None) -> str:
    """Names the folder of the training split with these targets; "" for those of the data."""
    return targets.name if targets else ""
