"""Run all phases, one after the other."""

from collections.abc import Sequence

from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches.workers import IN_PROCESS, Workers
from kd_jax.experiment import ResolvedExperiment
from kd_jax.phases import cache, evaluate, prepare, report, student, teacher
from kd_jax.runtime import hosts


def run(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    force: bool = False,
    workers: Workers = IN_PROCESS,
    profile: tuple[int, int] | None = None,
    metrics: Sequence[str] = (),
) -> None:
    """Run each phase: a finished one is skipped, an unfinished one resumed.

    Args:
      experiment: the resolved experiment.
      workdir: the run's folder.
      force: redo finished phases from the start.
      workers: the processes that prepare the data.
      profile: first and last training step to trace for xprof.
      metrics: metric writers beside metrics.jsonl: tensorboard, wandb, mlflow.

    Raises:
      KdError: if a phase refuses its inputs.
    """
    hosts.run_on_main(lambda: prepare.run(experiment, workdir, force, workers))
    teacher.run(experiment, workdir, force, profile, metrics)
    cache.run(experiment, workdir, force)
    student.run(experiment, workdir, force, profile=profile, metrics=metrics)
    evaluate.run(experiment, workdir, force)
    hosts.run_on_main(lambda: report.run(experiment, workdir))
