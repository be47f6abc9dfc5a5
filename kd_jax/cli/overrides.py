"""An experiment with fields replaced from the command line."""

from collections.abc import Sequence

import tyro

from kd_jax import config
from kd_jax.cli.tyro_errors import one_line_errors
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, resolve
from kd_jax.phases.check import check


def apply_overrides(path: str, overrides: Sequence[str]) -> Experiment:
    """Return the resolved and checked experiment of a file, with fields replaced.

    Args:
      path: the experiment's file.
      overrides: for example ["--teacher.training.steps", "500"]; each value has its field's type.

    Raises:
      KdError: for an unknown field (with the nearest name), a value of the wrong type, or an invalid experiment.
      SystemExit: with code 0 after --help.
    """
    experiment = config.load_experiment(path)
    if not isinstance(experiment, Experiment):
        raise KdError(f"config {path}: expected `experiment` to be an Experiment, got {type(experiment).__name__}.")
    with one_line_errors():
        experiment = tyro.cli(
            Experiment,
            prog=f"kd-jax COMMAND {path}",
            default=experiment,
            args=list(overrides),
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),  # --field True, as every field
        )
    experiment = resolve(experiment)
    check(experiment)
    return experiment
