"""Python entry points: run an experiment, load its models, batches and metrics."""

from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.artifacts import files, manifest, metrics_log
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE, EvalBatches, Split
from kd_jax.errors import KdError
from kd_jax.evaluation.loaded_model import LoadedModel
from kd_jax.experiment import Experiment, ResolvedExperiment, resolve
from kd_jax.phases.check import check
from kd_jax.phases.run import run as run_phases
from kd_jax.phases.workdirs import lock_workdir, open_run, open_workdir, read_experiment
from kd_jax.provenance import PHASES, check_built
from kd_jax.runtime.compilation_cache import use_compilation_cache
from kd_jax.types import Batch


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
    resolved = resolve(experiment)
    check(resolved)
    folder = open_workdir(workdir)
    with lock_workdir(folder, resolved, force=PHASES if force else ()):
        run_phases(resolved, folder, force)
        return manifest.read_json(folder.report.file("report.json"))


def load_model(path: str | Path, name: str = "student_kd", experiment: Experiment | None = None) -> LoadedModel:
    """Load a trained model of a run, or a model in Hugging Face's layout.

    Args:
      path: the workdir of a run, or a local folder with config.json, safetensors and a tokenizer.
      name: "teacher" or a student's name; not used for a folder in Hugging Face's layout.
      experiment: that of the run's config; needed if its task, tokenizer or model is of a class of your own, since
        reading a workdir imports none. The fields are those of the run.

    Returns:
      The model, with `generate` and `log_likelihood`, its parameters and its pure functions.

    Raises:
      KdError: if the folder holds no model of this name, its architecture is not supported, or the experiment or a
        folder that the model was made from has changed since.

    Examples:
      >>> student = load_model("runs/smoke", "student_kd")  # doctest: +SKIP
      >>> student.generate(["a small house"])  # doctest: +SKIP
      ['une petite maison']
      >>> student.log_likelihood([("a small house", "une petite maison")]).sums  # doctest: +SKIP
      array([-1.4...])
      >>> load_model("runs/none")
      Traceback (most recent call last):
      kd_jax.errors.KdError: path: expected a run's workdir or a folder with config.json, got runs/none. Name another \
folder.
    """
    folder = files.as_path(path)
    if (folder / "config.json").exists():
        return LoadedModel.from_folder(folder)
    workdir, resolved = _open_run(path, name, experiment)
    return LoadedModel.from_run(resolved, workdir, name)


def load_batches(
    path: str | Path,
    split: str = "validation",
    name: str = "student_kd",
    batch_size: int = INFERENCE_BATCH_SIZE,
    experiment: Experiment | None = None,
) -> EvalBatches[Batch]:
    """Return the batches of a prepared split: every example once, on the host.

    Args:
      path: the workdir of a run.
      split: "train", "validation" or "test".
      name: of the model that the rows are for, "teacher" or a student's name.
      batch_size: rows of a batch.
      experiment: as in `load_model`.

    Raises:
      KdError: if the folder holds no run, or the split is not prepared.

    Examples:
      >>> batches = load_batches("runs/smoke", "test")  # doctest: +SKIP
      >>> sum(int(batch.mask_BT.sum()) for batch in batches)  # doctest: +SKIP
      1043
    """
    workdir, resolved = _open_run(path, name, experiment)
    check_built(f"the model of {name}", resolved.recipes[name].model)
    layout = resolved.recipes[name].model.layout(workdir.data.outputs()["start"])
    return EvalBatches(Split(workdir.data, split), layout, resolved.shapes, batch_size)


def read_metrics(path: str | Path, name: str = TEACHER) -> dict[str, np.ndarray]:
    """Return the training metrics of a model as arrays, by name; NaN where a row lacks a metric.

    Args:
      path: the workdir of a run.
      name: "teacher" or a student's name.

    Returns:
      "step" int64 [rows], and every other metric float64 [rows], such as "loss", "valid_cross_entropy" (nats per
      token), "learning_rate" and "tokens_per_second".

    Raises:
      KdError: if the folder holds no run, or the model has no log.

    Examples:
      >>> metrics = read_metrics("runs/smoke", "student_kd")  # doctest: +SKIP
      >>> import matplotlib.pyplot as plt  # doctest: +SKIP
      >>> plt.plot(metrics["step"], metrics["loss"], ".")  # doctest: +SKIP
    """
    workdir = _find_run(path)
    _check_name(read_experiment(workdir), name)
    rows = metrics_log.read(workdir.model(name).path / "metrics.jsonl")
    metrics = sorted({metric for row in rows for metric in row} - {"step"})
    arrays = {metric: np.asarray([row.get(metric, np.nan) for row in rows], np.float64) for metric in metrics}
    return {"step": np.asarray([row["step"] for row in rows], np.int64)} | arrays


def _open_run(path: str | Path, name: str, experiment: Experiment | None) -> tuple[Workdir, ResolvedExperiment]:
    """Return a run's workdir and experiment.

    Raises:
      KdError: if there is no run, or it has no model of this name.
    """
    _find_run(path)
    workdir, resolved = open_run(path, experiment)
    _check_name(resolved, name)
    return workdir, resolved


def _find_run(path: str | Path) -> Workdir:
    workdir = open_workdir(path)
    if not workdir.config.exists():
        raise KdError(f"path: expected a run's workdir or a folder with config.json, got {path}. Name another folder.")
    return workdir


def _check_name(experiment: ResolvedExperiment, name: str) -> None:
    if name not in experiment.recipes:
        raise KdError(f"name: expected one of {', '.join(experiment.recipes)}, got {name}.")
