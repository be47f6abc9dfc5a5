"""Train the students; the teacher's knowledge comes from the cache, or from the teacher in the step."""

import difflib
from collections.abc import Sequence

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.on_policy import OwnTextRule, Rounds
from kd_jax.batches.store import Store
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe
from kd_jax.objective.check import check_readable
from kd_jax.objective.terms import cached_signals, needs_teacher
from kd_jax.provenance import check_upstream
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
    """
    if only and only not in experiment.students:
        nearest = " or ".join(difflib.get_close_matches(only, experiment.students, 1, 0.0)) or "nothing"
        raise KdError(f"--only: expected one of {', '.join(experiment.students)}, got {only}. Did you mean {nearest}?")
    if workdir.teacher_is_imported:
        required_signal(experiment)
    for name in [only] if only else experiment.students:
        recipe = experiment.students[name]
        digests = _input_digests(name, recipe, workdir)
        signals = {} if isinstance(recipe.targets, Rounds) else cached_signals(recipe.terms)
        caches = [workdir.cache(recipe.train_targets.name, signal) for signal in signals]
        models = [workdir.model(TEACHER)] if "teacher" in digests else []
        if isinstance(recipe.init, FromStudent):
            models.append(workdir.model(recipe.init.name))
        check_upstream(experiment, workdir, [*models, *caches], recipe.train_targets.name)
        payloads = {} if isinstance(recipe.targets, Rounds) else _payloads(recipe, workdir)
        digests |= {f"cache.{signal}": store.digest for signal, store in payloads.items()}
        train_model(experiment, workdir, name, TrainingInputs(digests, payloads), force, Monitoring(profile, metrics))


def _input_digests(name: str, recipe: ResolvedRecipe, workdir: Workdir) -> dict[str, str]:
    """Return the digests of a student's inputs other than the data and the caches."""
    digests: dict[str, str] = {}
    if isinstance(recipe.init, FromTeacher) or needs_teacher(recipe.terms) or recipe.targets:
        digests["teacher"] = workdir.model(TEACHER).outputs()["digest"]
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
