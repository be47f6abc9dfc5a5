"""Train the teacher on the data alone."""

from collections.abc import Sequence

from kd_jax.artifacts.manifest import IMPORT_PHASE
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.experiment import ResolvedExperiment
from kd_jax.runtime import progress
from kd_jax.training.model import Monitoring, TrainingInputs, train_model


def run(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    force: bool = False,
    profile: tuple[int, int] | None = None,
    metrics: Sequence[str] = (),
) -> None:
    """Train experiment.teacher into workdir/teacher; do nothing if log-probabilities stand in its place.

    Args:
      experiment: the resolved experiment.
      workdir: the run's folder; its data must be prepared.
      force: retrain from the start.
      profile: first and last training step to trace for xprof.
      metrics: metric writers beside metrics.jsonl: tensorboard, wandb, mlflow.

    Raises:
      KdError: if the data is missing, or the folder was made with other inputs.
    """
    if workdir.teacher_is_imported and not force:
        progress.log(f"teacher: imported by `{IMPORT_PHASE}`, nothing to train")
        return
    train_model(experiment, workdir, TEACHER, TrainingInputs({}, {}), force, Monitoring(profile, metrics))
