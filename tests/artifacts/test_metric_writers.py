"""What else gets the log's rows gets each figure once, whatever is trained again."""

import pytest

from kd_jax.artifacts import metric_writers
from kd_jax.artifacts.metrics_log import MetricsLog
from kd_jax.errors import KdError


class Listed:
    """A sink that keeps what it is given."""

    given: list[tuple[str, int, dict[str, float]]] = []

    def __init__(self, folder, title, run):
        self.run = run or f"run {len({name for name, _, _ in self.given}) + 1}"

    def write(self, figures, step):
        self.given.append((self.run, step, figures))

    def close(self):
        pass


@pytest.fixture
def log(monkeypatch, tmp_path):
    """() -> a log with a writer, as a process makes it."""
    monkeypatch.setattr(Listed, "given", [])
    monkeypatch.setitem(metric_writers.SINKS, "listed", Listed)
    return lambda: MetricsLog(tmp_path / "m.jsonl", [metric_writers.ResumableWriter("listed", tmp_path / "metrics", "teacher")])


def rows(*steps):
    return [{"step": step, "loss": 1 / step} for step in steps]


def test_rows_that_are_made_again_are_not_handed_over_again(log):
    first = log()
    first.truncate_after(-1)
    for row in rows(20, 40, 60):
        first.append(row)
    first.close()
    again = log()
    again.truncate_after(20)  # the checkpoint
    for row in rows(40, 60, 80):
        again.append(row)
    again.append({"step": 80, "valid": 0.5})  # another figure of a step that it has
    assert Listed.given == [("run 1", row["step"], {"loss": row["loss"]}) for row in rows(20, 40, 60, 80)] + [
        ("run 1", 80, {"valid": 0.5})
    ]


def test_a_training_that_begins_anew_is_another_run(log):
    for _ in range(2):
        one = log()
        one.truncate_after(-1)
        one.append(rows(20)[0])
    assert [run for run, _, _ in Listed.given] == ["run 1", "run 2"]


def test_a_log_that_was_not_begun_has_nothing_to_close(log):
    log().close()


def test_a_writer_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setitem(metric_writers.SINKS, "no_such_package", Listed)
    with pytest.raises(KdError, match="--metrics no_such_package: wants the package no_such_package.*pip install"):
        metric_writers.check(["no_such_package"])
    with pytest.raises(KdError, match="--metrics paper: wanted tensorboard, wandb, mlflow"):
        metric_writers.check(["paper"])
    metric_writers.check([])


def test_tensorboard_reads_back_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    def trained(anew, *steps):
        writer = metric_writers.ResumableWriter("tensorboard", tmp_path, "teacher")
        writer.begin(anew)
        for row in rows(*steps):
            writer.write(row)
        writer.close()
        events = EventAccumulator(str(tmp_path / "tensorboard/teacher"))
        events.Reload()
        return [(one.step, pytest.approx(make_ndarray(one.tensor_proto).item())) for one in events.Tensors("loss")]

    assert trained(True, 20, 40) == [(20, 1 / 20), (40, 1 / 40)]
    assert trained(False, 40, 60) == [(20, 1 / 20), (40, 1 / 40), (60, 1 / 60)]
    assert trained(True, 20) == [(20, 1 / 20)]


def test_mlflow_keeps_each_figure_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for anew, steps in [(True, (20, 40)), (False, (40, 60))]:
        writer = metric_writers.ResumableWriter("mlflow", tmp_path, "teacher")
        writer.begin(anew)
        for row in rows(*steps):
            writer.write(row)
        writer.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name(metric_writers.PROJECT).experiment_id])
    assert run.info.run_name == "teacher"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(step, 1 / step) for step in (20, 40, 60)]


def test_wandb_takes_them_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for anew, steps in [(True, (20, 40)), (False, (40, 60))]:
        writer = metric_writers.ResumableWriter("wandb", tmp_path, "teacher")
        writer.begin(anew)
        for row in rows(*steps):
            writer.write(row)
        writer.close()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2  # parts of one run, which `wandb sync` joins
