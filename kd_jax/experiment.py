"""The dataclasses of an experiment, and the step from what a user writes to what the phases run."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar, cast

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.batches.layouts import Bucket
from kd_jax.batches.on_policy import OnPolicy, OwnTextRule, Rounds
from kd_jax.batches.targets import PseudoTargets, TrainTargets
from kd_jax.errors import KdError
from kd_jax.fields import check_fields, check_type
from kd_jax.models.base import Architecture
from kd_jax.models.transformer import Transformer
from kd_jax.objective.terms import Term, cached_signals
from kd_jax.optim.optimizer import Optimizer
from kd_jax.runtime.mesh import DATA_PARALLEL, Mesh
from kd_jax.signals.base import LogitSignal
from kd_jax.sources.base import Source
from kd_jax.students.init import FromCheckpoint, FromStudent, FromTeacher, Random
from kd_jax.students.pretrained import FromHuggingFace, Smaller
from kd_jax.tasks.base import Task
from kd_jax.tokenizers.base import TokenizerSettings, is_pretrained

Select = Literal["headline", "cross_entropy", "last"]
Initializer = Random | FromTeacher | FromStudent | FromCheckpoint | FromHuggingFace
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Training:
    """Length, batches and optimizer of a training run.

    Attributes:
      steps: parameter updates; 0 to use the first parameters as they are, for a pretrained teacher.
      tokens_per_batch: padded target tokens of a batch; a bucket of length T holds tokens_per_batch // T rows.
      packed: whether several examples share a row of the last bucket. They do not attend to each other.
      microbatches: portions of a batch whose gradients are added before one update.
      eval_every: steps between evaluations on the validation split; a checkpoint follows each.
      optimizer: learning-rate schedule and update rule.
      select: how the checkpoint that later phases use is chosen among the evaluated steps; of equal ones the latest
        is taken. "headline": by the task's first metric on decoded validation texts. "cross_entropy": by the
        cross-entropy on the validation split, as also for a headline that reads no texts or has no direction, and
        where only one step is evaluated. It is wrong for students of pseudo-targets: they become sure of the teacher's
        texts, so the references' cross-entropy prefers early steps. "last": the last step.
      select_texts: validation examples to decode for "headline", evenly spaced in the split, without those whose
        prompt is longer than the last bucket.

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
    select: Select = "headline"
    select_texts: int = 192


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model, its first parameters, its objective and its training; for the teacher and for each student.

    Attributes:
      model: hyper-parameters of the network. None takes those of the folder in `init`; Smaller, for a student,
        takes the teacher's with other sizes, or that of the student in `init`.
      init: where the first parameters come from.
      terms: the objective, name -> Term.
      training: steps, batches, optimizer.
      targets: None for the references of the data. Students only: PseudoTargets for texts of the teacher; OnPolicy and
        Rounds for texts that the student writes while it trains.
      references: number of training examples whose references the model may learn from, the same ones for every seed; 0
        for all. It stands for a user with few references and much source text, beside a teacher that was trained on
        more. Without `targets` the model trains on these examples alone.

    Examples:
      >>> from kd_jax import EncoderDecoder
      >>> from kd_jax.losses.cross_entropy import cross_entropy
      >>> teacher = Recipe(EncoderDecoder(), {"ce": Term(cross_entropy)}, Training(steps=1000))
      >>> student = dataclasses.replace(teacher, model=EncoderDecoder(decoder_layers=1), init=FromTeacher())
      >>> teacher.init, student.init.width, student.model.stacks()
      (Random(), 'importance', {'encoder': 3, 'decoder': 1})
    """

    model: Architecture | Smaller | None
    terms: Mapping[str, Term]
    training: Training
    init: Initializer = Random()
    targets: PseudoTargets | OnPolicy | Rounds | None = None
    references: int = 0

    @property
    def pseudo_targets(self) -> PseudoTargets | None:
        """The teacher's texts that the model learns from, also beside its own; None for references."""
        return self.targets.others if isinstance(self.targets, OwnTextRule) else self.targets

    @property
    def train_targets(self) -> TrainTargets:
        """The training split that the model reads."""
        return TrainTargets(self.pseudo_targets, self.references if self.pseudo_targets else 0)


@dataclasses.dataclass(frozen=True)
class ResolvedRecipe(Recipe):
    """A recipe whose model has all its hyper-parameters. On disk it is a Recipe.

    Attributes:
      model: hyper-parameters of the network.
    """

    model: Architecture

    config_class: ClassVar[type] = Recipe


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What the phase `evaluate` measures. The task decides how texts are generated and scored.

    Attributes:
      split: the split to measure on.
      batch_size: texts generated together.
      texts: examples to generate texts for, evenly spaced in the split; 0 for all.
      bootstrap: resamples of the examples for the confidence intervals.
      speed_texts: texts generated to time each model at batch 1; four batches of batch_size are timed as well.
      samples: texts shown side by side in the report.
      cached_k: k of the teacher's top-k cache of the validation split, for figures that need the teacher's
        distribution but not the teacher (KL, agreement, acceptance); 0 for no such cache.
      draft: tokens that the leading student drafts in each round of speculative decoding with the teacher,
        timed at batch 1 on `speed_texts`; 0 to skip it.
      int8: models to measure a second time with int8 weights.
      own_texts: texts that each student writes, at temperature 1, to be compared with its teacher there; 0 for none.

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
    own_texts: int = 0

    @property
    def in_int8(self) -> dict[str, str]:
        """Return name with int8 weights -> name of the trained model whose weights they are."""
        return {f"{name}_int8": name for name in self.int8}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The students in the report's headline. Every other student is a control.

    Attributes:
      baseline: the student without a teacher; gap_recovered starts from it.
      distilled: the student that learns from the teacher.
      controls: students that `kd_jax ablate` compares every other student with, besides those that it adds.

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
    """All settings of a run. Two runs of the same experiment give the same bits.

    Attributes:
      name: title of the report.
      source: where raw examples come from (kd_jax.sources).
      task: fields, encoding, decoding and metrics (kd_jax.tasks).
      tokenizer: SentencePiece, trained on the training split, or HuggingFaceTokenizer, a pretrained model's.
      buckets: padded lengths of the completion; each is compiled once. Longer training examples are skipped
        and counted. A decoder-only model has prompt and completion in one row, so its rows are as long as both.
      teacher: the large model.
      students: name -> recipe.
      comparison: the students of the report's headline; None for the best one.
      evaluation: what is measured.
      prompt_buckets: padded length of the prompt for each of `buckets`; empty for the same lengths. If the
        task has no prompts, these are the lengths of the text beginnings that are continued.
      backend: how steps are divided among devices (kd_jax.runtime.backends.BACKENDS); it does not change results.
      mesh: sizes of the mesh for backend="mesh", for models that do not fit one device.
      seed: decides first parameters, order of examples and dropout.

    Examples:
      >>> from kd_jax import EncoderDecoder, SentencePiece, Toy, Translation, cross_entropy
      >>> recipe = Recipe(EncoderDecoder(), {"ce": Term(cross_entropy)}, Training(steps=1000))
      >>> experiment = Experiment(
      ...     name="mine",
      ...     source=Toy(),
      ...     task=Translation(),
      ...     tokenizer=SentencePiece(),
      ...     buckets=(12, 32),
      ...     teacher=recipe,
      ...     students={"small": recipe},
      ... )
      >>> list(experiment.recipes), experiment.shapes[0]
      (['teacher', 'small'], Bucket(prompt=12, completion=12))
    """

    name: str
    source: Source
    task: Task
    tokenizer: TokenizerSettings
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
        """Return the padded lengths of prompt and completion, ascending."""
        prompts = self.prompt_widths if self.task.prompted else (0,) * len(self.buckets)
        return tuple(map(Bucket, prompts, self.buckets))

    @property
    def prompt_widths(self) -> tuple[int, ...]:
        """Return the padded lengths of the prompts for generation, ascending."""
        return self.prompt_buckets or self.buckets

    @property
    def recipes(self) -> Mapping[str, Recipe]:
        """Return name -> recipe of every model, the teacher first."""
        return {TEACHER: self.teacher, **self.students}


@dataclasses.dataclass(frozen=True)
class ResolvedExperiment(Experiment):
    """An experiment as the phases run it: every model and the tokenizer's settings are complete.

    `resolve` makes it. On disk it is an Experiment.

    Attributes:
      teacher: the large model.
      students: name -> recipe.

    Examples:
      >>> from kd_jax import load_experiment
      >>> type(resolve(load_experiment("experiments/configs/smoke.py"))).__name__
      'ResolvedExperiment'
    """

    teacher: ResolvedRecipe
    students: Mapping[str, ResolvedRecipe]

    config_class: ClassVar[type] = Experiment

    @property
    def recipes(self) -> Mapping[str, ResolvedRecipe]:
        """Return name -> recipe of every model, the teacher first."""
        return {TEACHER: self.teacher, **self.students}


def resolve(experiment: Experiment) -> ResolvedExperiment:
    """Return the experiment with the hyper-parameters of every model and the tokenizer's folder filled in.

    A model None becomes that of the folder in `init`; Smaller becomes the teacher's with other sizes, or with
    init=FromStudent that student's. A
    HuggingFaceTokenizer without a folder gets the teacher's, and becomes a MarianTokenizer or M2M100Tokenizer if
    the folder holds such files.

    Raises:
      KdError: if a field has another type, a folder cannot be read, or a model is None without a folder.

    Examples:
      >>> from kd_jax import load_experiment
      >>> experiment = resolve(load_experiment("experiments/configs/smoke.py"))
      >>> [recipe.model.stacks()["decoder"] for recipe in experiment.recipes.values()]
      [2, 1, 1, 1]
    """
    check_fields(experiment)
    tokenizer, teacher = experiment.tokenizer, experiment.teacher
    cut = False
    if is_pretrained(tokenizer):
        teacher_folder = teacher.init.folder if isinstance(teacher.init, FromHuggingFace) else ""
        tokenizer = tokenizer.with_folder(tokenizer.folder or teacher_folder)
        cut = tokenizer.cut
    resolved_teacher = _resolve_recipe(TEACHER, teacher, None, cut)
    students: dict[str, ResolvedRecipe] = {}
    for name, recipe in experiment.students.items():
        larger = students.get(recipe.init.name) if isinstance(recipe.init, FromStudent) else None
        students[name] = _resolve_recipe(f"students.{name}", recipe, larger or resolved_teacher, cut)
    changes = {"tokenizer": tokenizer, "teacher": resolved_teacher, "students": students}
    return _convert(ResolvedExperiment, experiment, changes)


def _resolve_recipe(field: str, recipe: Recipe, larger: ResolvedRecipe | None, cut: bool) -> ResolvedRecipe:
    """Return the recipe with its model's hyper-parameters.

    Args:
      field: of the recipe.
      recipe: of the teacher or of a student.
      larger: recipe of the model that Smaller is smaller than; None for the teacher.
      cut: whether the vocabulary is smaller than the folder's.
    """
    model = recipe.model
    if isinstance(model, Smaller):
        if larger is None:
            raise KdError(
                f"{field}.model: expected a model, got Smaller, which is for students. Name a model, or set it to None "
                "with init=FromHuggingFace(FOLDER)."
            )
        model = model.resolve(cast(Transformer, larger.model))
    elif model is None:
        if not isinstance(recipe.init, FromHuggingFace):
            raise KdError(
                f"{field}.model: expected a model, got None. Name one, or set init=FromHuggingFace(FOLDER) to take "
                "the folder's."
            )
        try:
            model = recipe.init.architecture()
        except KdError as error:
            raise KdError(f"{field}.{error}") from error
        model = dataclasses.replace(model, vocab_rows=0) if cut else model
    return _convert(ResolvedRecipe, recipe, {"model": model})


def _convert(kind: type[T], value: Any, changes: dict[str, Any]) -> T:
    """Return an instance of `kind` with the fields of `value`, some of them changed."""
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return kind(**fields | changes)


def as_resolved(experiment: Experiment) -> ResolvedExperiment:
    """Return an experiment that was written after `resolve` and read again, with its type.

    Raises:
      KdError: if a field has another type, as in a file that was edited.
    """
    try:
        check_fields(experiment, names=True)
        for name, recipe in experiment.recipes.items():
            check_type(recipe.model, Architecture, f"{name}.model", names=True)
    except KdError as error:
        raise KdError(f"experiment.json: {error} Restore the file that kd_jax wrote.") from error
    recipes = {name: _convert(ResolvedRecipe, recipe, {}) for name, recipe in experiment.recipes.items()}
    return _convert(ResolvedExperiment, experiment, {"teacher": recipes.pop(TEACHER), "students": recipes})


def required_signals(experiment: Experiment) -> dict[TrainTargets, dict[str, LogitSignal]]:
    """Return, for each kind of targets, name -> signal that the students' terms read from a cache."""
    terms: dict[TrainTargets, dict[str, Term]] = {}
    for name, recipe in experiment.students.items():
        of_targets = terms.setdefault(recipe.train_targets, {})
        if not isinstance(recipe.targets, Rounds):  # which have a cache for each round
            of_targets |= {f"{name}.{key}": term for key, term in recipe.terms.items()}
    return {targets: cached_signals(of_targets) for targets, of_targets in terms.items()}
