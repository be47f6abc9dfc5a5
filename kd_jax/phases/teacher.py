"""Train the teacher on the data alone."""

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.experiment import Experiment
from kd_jax.training.model import train_model


def run(experiment: Experiment, workdir: Workdir, force: bool = False) -> None:
    """Trains experiment.teacher into workdir/teacher."""
    train_model(experiment, workdir, TEACHER, {}, {}, force)
