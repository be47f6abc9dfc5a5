"""A run's folder while a command works in it: its lock, and the experiment that it was made with."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from kd_jax import config
from kd_jax.artifacts import files, manifest
from kd_jax.artifacts.workdir import Workdir
from kd_jax.errors import KdError, ScoresNeeded
from kd_jax.experiment import Experiment, ResolvedExperiment, as_resolved
from kd_jax.provenance import check_built, check_fields
from kd_jax.runtime import hosts
from kd_jax.user_code import user_classes


def open_workdir(path: str | Path) -> Workdir:
    """Return the workdir at a path, which need not exist yet.

    Raises:
      KdError: if it is no path, a file, or something in it leads out of it or is neither a file nor a folder.
    """
    files.check_path("--workdir", path)
    folder = files.as_path(path)
    if folder.exists() and not folder.is_dir():
        raise KdError(f"--workdir: expected a folder, got the file {folder}. Choose another path.")
    if not files.in_bucket(folder):
        files.check_inside(folder)
    return Workdir(folder)


def open_run(path: str | Path, classes_of: Experiment | None = None) -> tuple[Workdir, ResolvedExperiment]:
    """Return the workdir of a run and the experiment in it, to use its models.

    Args:
      path: of the workdir.
      classes_of: an experiment with the user's own classes of the run, which reading a workdir does not import.

    Raises:
      KdError: if there is no run, or its task or tokenizer is of a class that neither kd_jax nor `classes_of` has.
    """
    workdir = open_workdir(path)
    experiment = read_experiment(workdir, user_classes(classes_of))
    check_built("task", experiment.task)
    check_built("tokenizer", experiment.tokenizer)
    return workdir, experiment


def write_experiment(workdir: Workdir, experiment: ResolvedExperiment) -> None:
    """Write the resolved experiment as JSON, so that `generate` and `export` need the workdir alone."""
    manifest.write_json(workdir.config, config.to_data(experiment))


def read_experiment(workdir: Workdir, classes: Mapping[str, type] = MappingProxyType({})) -> ResolvedExperiment:
    """Return the experiment that a workdir was made with; reading it imports none but the `classes`, by full name."""
    if not workdir.config.exists():
        path = workdir.path
        raise KdError(f"--workdir: {path} holds no run. Make one with `kd-jax run CONFIG --workdir {path}`.")
    experiment = config.from_data(manifest.read_json(workdir.config), classes)
    if not isinstance(experiment, Experiment):
        raise KdError(
            f"{workdir.config}: expected an experiment as kd_jax writes it. Move the file away or choose another "
            "--workdir."
        )
    return as_resolved(experiment)


@contextlib.contextmanager
def lock_workdir(
    workdir: Workdir,
    experiment: ResolvedExperiment,
    writer: tuple[int, int] | None = None,
    force: Collection[str] = (),
    only: str = "",
) -> Iterator[None]:
    """Hold the workdir's lock for the block, and write experiment.json at its end.

    The experiment is first compared with what each finished phase was made with. A new workdir's experiment.json is
    written at the start too. An existing one is replaced at the end only, or where scores of a teacher elsewhere are
    needed: a configuration that a phase refuses must not take the place of the one that made the folder.

    Args:
      workdir: the run's folder.
      experiment: of the command.
      writer: as in `Workdir.lock`.
      force: phases that the command makes again.
      only: the student that is made again; "" for all.
    """
    with contextlib.ExitStack() as locks:

        def lock() -> None:
            locks.enter_context(workdir.lock(writer))
            if workdir.config.exists():
                read_experiment(workdir)  # raises if the file is not ours
            check_fields(experiment, workdir, force, only)
            if not workdir.config.exists():
                write_experiment(workdir, experiment)

        hosts.run_on_main(lock)
        try:
            yield
        except ScoresNeeded:  # the import of the scores reads the experiment
            if hosts.is_main_process():
                write_experiment(workdir, experiment)
            raise
        if hosts.is_main_process():
            write_experiment(workdir, experiment)
