"""Python entry points: the commands as functions."""

from pathlib import Path
from typing import Any

from kd_jax.artifacts import manifest
from kd_jax.experiment import Experiment, resolve
from kd_jax.phases.check import check
from kd_jax.phases.run import run as run_phases
from kd_jax.phases.workdirs import lock_workdir, open_workdir
from kd_jax.runtime.compilation_cache import use_compilation_cache


def run(experiment: Experiment, workdir: str | Path, force: bool = False) -> dict[str, Any]:
    """Run all phases, as `kd-jax run` does: skip finished phases, resume unfinished ones.

    Compiled programs are cached in $KD_JAX_CACHE, for the rest of this process too.

    Args:
      experiment: an experiment as a config defines it.
      workdir: the run's folder; it stays locked until the run ends.
      force: redo finished phases from the start.

    Returns:
      The contents of report/report.json.

    Raises:
      KdError: if the experiment is invalid, or the workdir belongs to another experiment or process.

    Examples:
      >>> import dataclasses
      >>> from kd_jax import load_experiment
      >>> smoke = load_experiment("experiments/configs/smoke.py")
      >>> report = run(smoke, "runs/smoke")  # doctest: +SKIP
      >>> run(dataclasses.replace(smoke, seed=-1), "runs/smoke")  # before any work
      Traceback (most recent call last):
      kd_jax.errors.KdError: seed: expected an integer in [0, 4294967295], got -1. Set `--seed`.
    """
    use_compilation_cache()
    experiment = resolve(experiment)
    check(experiment)
    folder = open_workdir(workdir)
    with lock_workdir(folder, experiment):
        run_phases(experiment, folder, force)
        return manifest.read_json(folder.report.file("report.json"))
