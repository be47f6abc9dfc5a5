"""What training measures, also to where a person looks at curves: TensorBoard, Weights & Biases, MLflow.

The log of a run is metrics.jsonl (`metrics_log`), which a resume cuts to the checkpoint. These cannot be cut, but what
is trained again gives the same figures to the last bit, times apart. So each figure is handed over once: beside every
writer lies the last step of each name that it was given, and what is not later is left out. The only file that imports
their libraries, when they are asked for.
"""

import importlib.util
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kd_jax.artifacts.manifest import read_json, write_json
from kd_jax.errors import KdError

PROJECT = "kd_jax"  # under which they file a model's training


class Sink(Protocol):
    """One of these services, open for one model's training."""

    run: str  # its own name of that training, by which it is opened again

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Hands figures of a step over."""
        ...

    def close(self) -> None:
        """Nothing more is to come."""
        ...


class TensorBoard:
    """Event files in FOLDER/tensorboard/TITLE."""

    def __init__(self, folder: Path, title: str, run: str):
        from tensorboard.summary import Writer

        self.run = title
        logs = folder / "tensorboard" / title
        if not run:
            shutil.rmtree(logs, ignore_errors=True)
        self._writer = Writer(str(logs))

    def write(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in FOLDER/wandb until `wandb sync`."""

    def __init__(self, folder: Path, title: str, run: str):
        import wandb

        self.run = run or uuid.uuid4().hex[:8]
        self._run = wandb.init(project=PROJECT, name=title, id=self.run, resume="allow", dir=str(folder))

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class MlFlow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in FOLDER/mlflow.db."""

    def __init__(self, folder: Path, title: str, run: str):
        import mlflow

        elsewhere = "MLFLOW_TRACKING_URI" in os.environ
        self._client = mlflow.MlflowClient(None if elsewhere else f"sqlite:///{(folder / 'mlflow.db').absolute()}")
        experiment = self._client.get_experiment_by_name(PROJECT)
        under = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        self.run = run or self._client.create_run(under, run_name=title).info.run_id

    def write(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self.run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self.run)


SINKS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MlFlow}  # name: of its package too


def check(names: Sequence[str]) -> None:
    """Raises KdError for a writer that there is not, or whose package is not installed."""
    for name in names:
        if name not in SINKS:
            raise KdError(f"--metrics {name}: wanted {', '.join(SINKS)}")
        if importlib.util.find_spec(name) is None:
            raise KdError(f"--metrics {name}: wants the package {name}, which is not installed; pip install {name}")


class ResumableWriter:
    """A sink that is given every figure once."""

    def __init__(self, name: str, folder: Path, title: str):
        """Nothing is opened yet.

        Args:
          name: of SINKS.
          folder: for what it keeps; beside other models'.
          title: of the model.
        """
        self._name, self._folder, self._title = name, folder, title
        self._given = folder / f"{title}.{name}.json"  # its run, and name of a figure -> the last step that it has
        self._sink: Sink | None = None

    def begin(self, anew: bool) -> None:
        """Opens it, for a training that begins `anew` or goes on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        known = {"run": "", "last": {}} if anew or not self._given.exists() else read_json(self._given)
        self._last: dict[str, int] = known["last"]
        self._sink = SINKS[self._name](self._folder, self._title, known["run"])

    def write(self, row: Mapping[str, float]) -> None:
        """Those of a row's figures that it has not been given."""
        step = int(row["step"])
        figures = {name: value for name, value in row.items() if name != "step" and step > self._last.get(name, -1)}
        if figures:
            self._sink.write(figures, step)
            self._last |= dict.fromkeys(figures, step)
            write_json(self._given, {"run": self._sink.run, "last": self._last})

    def close(self) -> None:
        """Closes what was opened."""
        if self._sink:
            self._sink.close()
