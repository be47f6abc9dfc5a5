"""Train the students from what the teacher left in files; no teacher is in memory while they train."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from kd_jax.artifacts import files
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.store import Store
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment, targets_name
from kd_jax.objective.check import check_readable
from kd_jax.objective.terms import cached_signals, needs_teacher
from kd_jax.teaching.imported.base import wanted_of
from kd_jax.training.model import Monitoring, Sources, train_model


def run(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    force: bool = False,
    only: str = "",
    profile: tuple[int, int] | None = None,
    metrics: Sequence[str] = (),
) -> None:
    """Trains every student, or the one called `only`, into workdir/students/NAME.

    Raises:
      KdError: if there is no such student, the teacher or a cache that it needs is missing, or the teacher is
        elsewhere and a student needs more of it than was imported.
    """
    if only and only not in experiment.students:
        near = difflib.get_close_matches(only, experiment.students, 1, 0.0)
        raise KdError(f"--only {only}: no such student; did you mean {' '.join(near)}?")
    if workdir.teacher_is_imported:
        wanted_of(experiment)
    for name in [only] if only else experiment.students:
        consumed = _consumed(experiment, workdir, name)
        payloads = _payloads(experiment, workdir, name, consumed)
        digests = {f"cache.{signal}": store.digest for signal, store in payloads.items()}
        train_model(experiment, workdir, name, Sources(consumed | digests, payloads), force, Monitoring(profile, metrics))


def _consumed(experiment: ResolvedExperiment, workdir: Workdir, name: str) -> dict[str, str]:
    """Digests of what goes into a student besides the data and the caches."""
    recipe, consumed = experiment.students[name], {}
    if recipe.init.origin == "teacher" or needs_teacher(recipe.terms) or recipe.targets:
        consumed["teacher"] = workdir.model(TEACHER).outputs()["digest"]
    if recipe.targets:
        targets = workdir.split(recipe.targets.name)
        _refuse_others(f"targets {recipe.targets.name}", targets.inputs(), consumed)
        consumed["targets"] = targets.outputs()["digest"]
    if recipe.init.origin == "checkpoint":
        consumed["checkpoint"] = Folder(files.as_path(recipe.init.folder), "teacher").outputs()["digest"]
    return consumed


def _payloads(experiment: ResolvedExperiment, workdir: Workdir, name: str, consumed: Mapping[str, str]) -> dict[str, Store]:
    """Signal -> its cache, which must be of the teacher, the split and the tokeniser that are here."""
    recipe, payloads = experiment.students[name], {}
    data = workdir.data.outputs()
    for signal in cached_signals(recipe.terms):
        folder = workdir.cache(targets_name(recipe.targets), signal)
        here = {
            "teacher": workdir.model(TEACHER).outputs()["digest"],
            "split": consumed["targets"] if recipe.targets else data["splits"]["train"],
            "tokenizer": data["tokenizer"],
        }
        _refuse_others(f"cache {signal}", folder.inputs(), here)
        folder.file("records.index.json")
        payloads[signal] = Store(folder.path, "records")
    for term in recipe.terms.values():
        if term.signal is not None and term.signal.origin == "cache":
            name = term.signal.name
            check_readable(name, term.signal, data["vocab_size"], payloads[name].schema)
    return payloads


def _refuse_others(what: str, inputs: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """Raises KdError if something was made from another teacher, split or tokeniser."""
    for name, digest in wanted.items():
        seen = inputs[f"consumed.{name}"]
        if seen != digest:
            raise KdError(
                f"{what}: made with {name} {seen}, this run's is {digest}; write it again with `cache --force`"
            )
