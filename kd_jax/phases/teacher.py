"""Train the teacher on the data alone."""

from collections.abc import Sequence

from kd_jax.artifacts.manifest import IMPORT_PHASE
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.experiment import ResolvedExperiment
from kd_jax.runtime import progress
from kd_jax.training.model import Monitoring, Sources, train_model


def run(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    force: bool = False,
    profile: tuple[int, int] | None = None,
    metrics: Sequence[str] = (),
) -> None:
    """Trains experiment.teacher into workdir/teacher; has nothing to do where the teacher is elsewhere."""
    if workdir.teacher_is_imported and not force:
        progress.log(f"teacher: elsewhere, `{IMPORT_PHASE}` has read what it says")
        return
    train_model(experiment, workdir, TEACHER, Sources({}, {}), force, Monitoring(profile, metrics))
