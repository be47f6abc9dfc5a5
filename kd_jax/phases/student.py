"""Train the students; the teacher's knowledge comes from the cache, or from the teacher in the step."""

import difflib
from collections.abc import Sequence

from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.on_policy import OwnTextRule, Rounds
from kd_jax.batches.store import Store
from kd_jax.errors import KdError, ScoresNeeded
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe
from kd_jax.objective.check import check_readable
from kd_jax.objective.terms import cached_signals, needs_teacher
from kd_jax.provenance import check_upstream
from kd_jax.runtime import progress
from kd_jax.signals.base import compares_logits
from kd_jax.sources.base import UNLABELLED
from kd_jax.students.init import FromStudent, FromTeacher
from kd_jax.teaching.imported.base import required_signal
from kd_jax.training.model import Monitoring, TrainingInputs, train_model


def run(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    force: bool = False,
    only: str = "",
    profile: tuple[int, int] | None = None,
    metrics: Sequence[str] = (),
) -> None:
    """Train every student, or the one named `only`, into workdir/students/NAME.

    Args:
      experiment: the resolved experiment.
      workdir: the run's folder; the caches that the students read must be written.
      force: retrain from the start.
      only: a student's name; "" for all.
      profile: first and last training step to trace for xprof.
      metrics: metric writers beside metrics.jsonl: tensorboard, wandb, mlflow.

    Raises:
      KdError: if there is no such student, its teacher, cache or first parameters are missing or of another run, or it
        needs more of an imported teacher than was imported.
      ScoresNeeded: if students wait for scores of a teacher elsewhere; all others are trained.
    """
    check_name(experiment, only)
    if workdir.teacher_is_imported:
        required_signal(experiment)
    waiting: dict[str, ScoresNeeded] = {}
    for name in [only] if only else experiment.students:
        recipe = experiment.students[name]
        if isinstance(recipe.init, FromStudent) and recipe.init.name in waiting:
            progress.log(f"{name}: skipped, since {recipe.init.name} is not trained yet")
            continue
        in_rounds = isinstance(recipe.targets, Rounds)
        if in_rounds and not workdir.model(TEACHER).finished():
            raise KdError(
                f"students.{name}.targets: expected a teacher for the texts of a round, got no finished folder "
                f"{workdir.model(TEACHER).path}. Run `teacher`; or, for one elsewhere, `sample`, and `import-logprobs "
                f"--student {name}` with its scores."
            )
        signals = () if in_rounds else cached_signals(recipe.terms)
        digests = input_digests(
            experiment, workdir, name, [workdir.cache(recipe.train_targets.name, signal) for signal in signals]
        )
        payloads = {} if in_rounds else _payloads(recipe, workdir)
        digests |= {f"cache.{signal}": store.digest for signal, store in payloads.items()}
        inputs, monitoring = TrainingInputs(digests, payloads), Monitoring(profile, metrics)
        try:
            train_model(experiment, workdir, name, inputs, force, monitoring)
        except ScoresNeeded as error:
            waiting[name] = error
    if waiting:
        raise ScoresNeeded(" ".join(map(str, waiting.values())))


def check_name(experiment: ResolvedExperiment, only: str) -> None:
    """Check that the experiment has the student of --only; "" for all of them."""
    if only and only not in experiment.students:
        nearest = " or ".join(difflib.get_close_matches(only, experiment.students, 1, 0.0)) or "nothing"
        raise KdError(f"--only: expected one of {', '.join(experiment.students)}, got {only}. Did you mean {nearest}?")


def input_digests(
    experiment: ResolvedExperiment, workdir: Workdir, name: str, caches: Sequence[Folder] = ()
) -> dict[str, str]:
    """Return the digests of a student's inputs other than the data and the `caches`, all of which are checked."""
    recipe = experiment.students[name]
    digests = _input_digests(name, recipe, workdir)
    models = [workdir.model(TEACHER)] if "teacher" in digests else []
    if isinstance(recipe.init, FromStudent):
        models.append(workdir.model(recipe.init.name))
    check_upstream(experiment, workdir, [*models, *caches], recipe.train_targets.name)
    return digests


def _input_digests(name: str, recipe: ResolvedRecipe, workdir: Workdir) -> dict[str, str]:
    digests: dict[str, str] = {}
    teacher, needs_params = workdir.model(TEACHER), isinstance(recipe.init, FromTeacher) or needs_teacher(recipe.terms)
    # The signals of a teacher elsewhere have an identity of their own in each round.
    elsewhere = isinstance(recipe.targets, Rounds) and (workdir.teacher_is_imported or not teacher.finished())
    if needs_params or recipe.pseudo_targets or (recipe.targets and not elsewhere):
        digests["teacher"] = teacher.outputs()["digest"]
    if isinstance(recipe.init, FromStudent):
        other, folder = recipe.init.name, workdir.model(recipe.init.name)
        if not folder.finished():
            raise KdError(
                f"students.{name}.init.name: expected a trained student, got {other}, which has no finished folder "
                f"{folder.path}. Run `student --only {other}` first."
            )
        digests[f"model.{other}"] = folder.outputs()["digest"]
    if isinstance(recipe.targets, OwnTextRule) and recipe.targets.unlabelled:
        splits = workdir.data.outputs()["splits"]
        digests |= {split: splits[split] for split in (UNLABELLED,) if split in splits}
    if recipe.pseudo_targets:
        digests["targets"] = workdir.split(recipe.train_targets.name).outputs()["digest"]
    return digests


def _payloads(recipe: ResolvedRecipe, workdir: Workdir) -> dict[str, Store]:
    """Return signal -> its cache, checked to hold what the terms read."""
    payloads: dict[str, Store] = {}
    vocab_size = workdir.data.outputs()["vocab_size"]
    for signal in cached_signals(recipe.terms):
        folder = workdir.cache(recipe.train_targets.name, signal)
        folder.file("records.index.json")
        payloads[signal] = Store(folder.path, "records")
    for term in recipe.terms.values():
        if compares_logits(term.signal) and term.signal.origin == "cache":
            name = term.signal.name
            check_readable(name, term.signal, vocab_size, payloads[name].schema)
    return payloads
