"""Train the teacher on the data alone."""

from pathlib import Path

from kd_jax.errors import KdError
from kd_jax.experiment import Experiment
from kd_jax.models.init import FromTeacher
from kd_jax.training.model import train_model


def run(experiment: Experiment, workdir: Path, force: bool = False) -> None:
    """Trains experiment.teacher into workdir/teacher.

    Raises:
      KdError: if the teacher is to start from, or to learn from, a teacher.
    """
    recipe = experiment.teacher
    if isinstance(recipe.init, FromTeacher) or recipe.targets or any(term.signal for term in recipe.terms.values()):
        raise KdError(
            "teacher: has init=FromTeacher, a term with a signal, or pseudo-targets; it has no teacher of its own"
        )
    train_model(
        "teacher", "teacher", recipe, experiment, workdir, workdir / "teacher", consumed={}, payloads={}, force=force
    )
