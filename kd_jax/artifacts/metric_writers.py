"""Copies of the metrics log in TensorBoard, Weights & Biases or MLflow.

A resumed training repeats steps, with equal metrics except for times. `metrics_log` truncates its file; these services
cannot. So each writer stores the last step that it has written of each metric, and skips earlier steps. Only this
module imports the services' packages, when they are asked for.
"""

import importlib.util
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from kd_jax.artifacts.manifest import read_json, write_json
from kd_jax.errors import KdError

PROJECT = "kd_jax"  # under which the services file a model's training


class Sink(Protocol):
    """One of the services, open for one model's training.

    Attributes:
      run: the service's name of the training, by which it is opened again.
    """

    run: str

    def __init__(self, folder: Path, title: str, run: str) -> None:
        """Open the service.

        Args:
          folder: for its local files.
          title: of the model.
          run: an earlier `run` to continue; "" for a new one.
        """
        ...

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics of a step."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class TensorBoard:
    """Event files in FOLDER/tensorboard/TITLE."""

    def __init__(self, folder: Path, title: str, run: str):
        """Open a writer; a new run deletes the files of an earlier one."""
        from tensorboard.summary import Writer  # pyright: ignore[reportMissingImports]  # an extra

        self.run = title
        logs = folder / "tensorboard" / title
        if not run:
            shutil.rmtree(logs, ignore_errors=True)
        self._writer = Writer(str(logs))

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Finish."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; with WANDB_MODE=offline in FOLDER/wandb until `wandb sync`."""

    def __init__(self, folder: Path, title: str, run: str):
        """Open a new or an earlier run."""
        import wandb  # pyright: ignore[reportMissingImports]  # an extra

        self.run = run or uuid.uuid4().hex[:8]
        self._run = wandb.init(project=PROJECT, name=title, id=self.run, resume="allow", dir=str(folder))

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish."""
        self._run.finish()


class MlFlow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in FOLDER/mlflow.db."""

    def __init__(self, folder: Path, title: str, run: str):
        """Open a new or an earlier run."""
        import mlflow  # pyright: ignore[reportMissingImports]  # an extra

        has_server = "MLFLOW_TRACKING_URI" in os.environ
        self._client = mlflow.MlflowClient(None if has_server else f"sqlite:///{(folder / 'mlflow.db').absolute()}")
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        self.run = run or self._client.create_run(number, run_name=title).info.run_id

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics of a step."""
        for name, value in metrics.items():
            self._client.log_metric(self.run, name, value, step=step)

    def close(self) -> None:
        """Finish."""
        self._client.set_terminated(self.run)


SINKS: dict[str, type[Sink]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MlFlow}  # by package name


def check(names: Sequence[str]) -> None:
    """Check that each name is in SINKS and its package installed."""
    for name in names:
        if name not in SINKS:
            raise KdError(f"--metrics: expected some of {', '.join(SINKS)}, got {name!r}. Choose from them.")
        if importlib.util.find_spec(name) is None:
            raise KdError(f"--metrics: expected the package {name}, not installed. Run `pip install {name}`.")


class ResumableWriter:
    """A sink that receives each step of a metric once, also in a resumed training."""

    def __init__(self, name: str, folder: Path, title: str):
        """Make a writer to a sink of SINKS, for the model `title`; nothing is opened yet."""
        self._name, self._folder, self._title = name, folder, title
        self._state_path = folder / f"{title}.{name}.json"  # the sink's run, and metric -> the last step written
        self._sink: Sink | None = None
        self._last: dict[str, int] = {}

    def begin(self, fresh: bool) -> None:
        """Open the sink, for a fresh training or a resumed one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        state = {"run": "", "last": {}} if fresh or not self._state_path.exists() else read_json(self._state_path)
        self._last = state["last"]
        self._sink = SINKS[self._name](self._folder, self._title, state["run"])

    def write(self, row: Mapping[str, float]) -> None:
        """Write those metrics of a row that the sink does not have."""
        assert self._sink, "begin() comes first"
        step = int(row["step"])
        metrics = {name: value for name, value in row.items() if name != "step" and step > self._last.get(name, -1)}
        if metrics:
            self._sink.write(metrics, step)
            self._last |= dict.fromkeys(metrics, step)
            write_json(self._state_path, {"run": self._sink.run, "last": self._last})

    def close(self) -> None:
        """Close the sink, if it was opened."""
        if self._sink:
            self._sink.close()
