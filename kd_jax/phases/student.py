"""Train the students from what the teacher left in files; no teacher is in memory while they train."""

import difflib
from pathlib import Path

from kd_jax import manifest
from kd_jax.data.store import Store
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment
from kd_jax.models.shrink import FromCheckpoint, FromTeacher
from kd_jax.objective import cached_signals
from kd_jax.train import train_model


def run(experiment: Experiment, workdir: Path, force: bool = False, only: str = "") -> None:
    """Trains every student, or the one called `only`, into workdir/students/NAME.

    Raises:
      KdError: if there is no such student, or the teacher or a cache that it needs is missing.
    """
    if only and only not in experiment.students:
        near = difflib.get_close_matches(only, experiment.students, 1, 0.0)
        raise KdError(f"--only {only}: no such student; did you mean {' '.join(near)}?")
    for name in [only] if only else experiment.students:
        recipe = experiment.students[name]
        signals = cached_signals(recipe.terms)
        consumed = {}
        if isinstance(recipe.init, FromTeacher):
            consumed["teacher"] = manifest.read(workdir / "teacher", "teacher")["outputs"]["digest"]
        if isinstance(recipe.init, FromCheckpoint):
            consumed["checkpoint"] = manifest.read(Path(recipe.init.folder), "teacher")["outputs"]["digest"]
        for signal in signals:
            consumed[f"cache.{signal}"] = manifest.read(workdir / "cache" / signal, "cache")["outputs"]["digest"]
        train_model(
            "student",
            f"students.{name}",
            recipe,
            experiment,
            workdir,
            workdir / "students" / name,
            consumed=consumed,
            payloads={signal: Store(workdir / "cache" / signal, "records") for signal in signals},
            force=force,
        )
