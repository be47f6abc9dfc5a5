"""Metric writers write each step of a metric once, also when a training repeats steps."""

import pytest

from kd_jax.artifacts import metric_writers
from kd_jax.artifacts.metrics_log import MetricsLog
from kd_jax.errors import KdError


class RecordingSink:
    """A sink that records its calls."""

    calls: list[tuple[str, int, dict[str, float]]] = []

    def __init__(self, folder, title, run):
        self.run = run or f"run {len({name for name, _, _ in self.calls}) + 1}"

    def write(self, metrics, step):
        self.calls.append((self.run, step, metrics))

    def close(self):
        pass


@pytest.fixture
def log(monkeypatch, tmp_path):
    """() -> a new process's log with a writer."""
    monkeypatch.setattr(RecordingSink, "calls", [])
    monkeypatch.setitem(metric_writers.SINKS, "recording", RecordingSink)

    def make():
        writer = metric_writers.ResumableWriter("recording", tmp_path / "metrics", "teacher")
        return MetricsLog(tmp_path / "m.jsonl", [writer])

    return make


def rows(*steps):
    return [{"step": step, "loss": 1 / step} for step in steps]


def test_repeated_rows_are_written_once(log):
    first = log()
    first.truncate_after(-1)
    for row in rows(20, 40, 60):
        first.append(row)
    first.close()
    again = log()
    again.truncate_after(20)  # the checkpoint
    for row in rows(40, 60, 80):
        again.append(row)
    again.append({"step": 80, "valid": 0.5})  # another metric of a step
    assert RecordingSink.calls == [("run 1", row["step"], {"loss": row["loss"]}) for row in rows(20, 40, 60, 80)] + [
        ("run 1", 80, {"valid": 0.5})
    ]


def test_fresh_training_is_another_run(log):
    for _ in range(2):
        fresh = log()
        fresh.truncate_after(-1)
        fresh.append(rows(20)[0])
    assert [run for run, _, _ in RecordingSink.calls] == ["run 1", "run 2"]


def test_log_that_was_not_begun_closes(log):
    log().close()


def test_unknown_or_missing_writer_is_refused(monkeypatch):
    monkeypatch.setitem(metric_writers.SINKS, "no_such_package", RecordingSink)
    with pytest.raises(KdError, match="--metrics: expected the package no_such_package, not installed.*pip install"):
        metric_writers.check(["no_such_package"])
    with pytest.raises(KdError, match="--metrics: expected some of tensorboard, wandb, mlflow, .*got 'paper'"):
        metric_writers.check(["paper"])
    metric_writers.check([])


def test_tensorboard_reads_the_written_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    def train(fresh, *steps):
        writer = metric_writers.ResumableWriter("tensorboard", tmp_path, "teacher")
        writer.begin(fresh)
        for row in rows(*steps):
            writer.write(row)
        writer.close()
        events = EventAccumulator(str(tmp_path / "tensorboard/teacher"))
        events.Reload()
        return [
            (event.step, pytest.approx(make_ndarray(event.tensor_proto).item())) for event in events.Tensors("loss")
        ]

    assert train(True, 20, 40) == [(20, 1 / 20), (40, 1 / 40)]
    assert train(False, 40, 60) == [(20, 1 / 20), (40, 1 / 40), (60, 1 / 60)]
    assert train(True, 20) == [(20, 1 / 20)]


def test_mlflow_has_each_step_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for fresh, steps in [(True, (20, 40)), (False, (40, 60))]:
        writer = metric_writers.ResumableWriter("mlflow", tmp_path, "teacher")
        writer.begin(fresh)
        for row in rows(*steps):
            writer.write(row)
        writer.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name(metric_writers.PROJECT).experiment_id])
    assert run.info.run_name == "teacher"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(step, 1 / step) for step in (20, 40, 60)]


def test_wandb_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for fresh, steps in [(True, (20, 40)), (False, (40, 60))]:
        writer = metric_writers.ResumableWriter("wandb", tmp_path, "teacher")
        writer.begin(fresh)
        for row in rows(*steps):
            writer.write(row)
        writer.close()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2  # parts of one run, which `wandb sync` joins
