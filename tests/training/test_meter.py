"""The meter: means over tokens, time of training alone, non-finite losses and skipped updates."""

import contextlib
import time

import numpy as np
import pytest

from kd_jax.artifacts import metrics_log
from kd_jax.artifacts.checkpoint import Checkpoints
from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.training.meter import LOG_EVERY, Meter
from kd_jax.types import Sum
from tests.helpers.batches import random_examples, to_batch

SHORT, LONG = (to_batch(random_examples(0, [(3, length)], 9)) for length in (2, 5))
MAX_SKIPPED = 2
ROWS = np.array([7, 30, -1])  # examples of a batch, whose last row is padding
RATES = [0.1 * step for step in range(1, 50)]  # of updates 1, 2, ...


@pytest.fixture
def meter_and_path(tmp_path):
    """Return (meter, path of its log)."""
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(tmp_path))
        bar = stack.enter_context(progress.bar("model", 50))
        yield (
            Meter("model", checkpoints, metrics_log.MetricsLog(tmp_path / "log.jsonl"), bar, RATES, MAX_SKIPPED),
            tmp_path / "log.jsonl",
        )


def sums(loss, tokens, skipped=False):
    """Return a step's Sums with this mean loss over `tokens` tokens."""
    once = {"grad_norm": loss, "skipped": skipped}
    return {"loss": Sum(np.float32(loss * tokens), np.int32(tokens))} | {
        name: Sum(np.float32(value), np.int32(1)) for name, value in once.items()
    }


def test_losses_are_token_means_and_norms_are_step_means(meter_and_path):
    """Trap 3: (1.0 x 10 + 5.0 x 1 + 3.0 x 4) / 15; the mean of means would be 3."""
    meter, path = meter_and_path
    for step, (loss, tokens) in enumerate([(1.0, 10), (5.0, 1), (3.0, 4)], 1):
        meter.after_step(step, sums(loss, tokens), ROWS)
    assert not path.exists()
    meter.flush()
    (row,) = metrics_log.read(path)
    np.testing.assert_allclose([row["loss"], row["grad_norm"]], [27 / 15, 3.0], rtol=1e-6)
    assert (row["step"], row["learning_rate"]) == (3, RATES[2])


def test_each_step_counts_in_one_row(meter_and_path):
    """A row has LOG_EVERY steps, the last one the rest. A step is read after the next one is dispatched."""
    meter, path = meter_and_path
    for step in range(1, 2 * LOG_EVERY + 3):
        meter.after_step(step, sums(float(step), 1), ROWS)
        assert len(metrics_log.read(path) if path.exists() else []) == (step - 1) // LOG_EVERY
    meter.flush()
    rows = metrics_log.read(path)
    assert [row["step"] for row in rows] == [LOG_EVERY, 2 * LOG_EVERY, 2 * LOG_EVERY + 2]
    ranges = [(1, LOG_EVERY), (LOG_EVERY + 1, 2 * LOG_EVERY), (2 * LOG_EVERY + 1, 2 * LOG_EVERY + 2)]
    np.testing.assert_allclose([row["loss"] for row in rows], [(first + last) / 2 for first, last in ranges], rtol=1e-6)


PAUSE = 0.3  # seconds, far above the time of a step here


def run(meter, batches, pauses):
    """Run a step of 8 tokens for each batch; its dispatch takes `pause` seconds."""
    for step, (batch, pause) in enumerate(zip(batches, pauses, strict=True), 1):
        with meter.compiling(batch):
            time.sleep(pause)
        meter.after_step(step, sums(1.0, 8), ROWS)
    meter.flush()


def test_time_excludes_compilation_of_new_shapes(meter_and_path):
    meter, path = meter_and_path
    run(meter, [SHORT, SHORT, LONG, LONG], [0.0, 0.0, PAUSE, 0.0])
    (row,) = metrics_log.read(path)
    assert row["seconds"] < PAUSE / 2 and 8 <= row["tokens"] <= 24


def test_time_excludes_compilation_of_the_first_step(meter_and_path):
    meter, path = meter_and_path
    run(meter, [SHORT, SHORT, SHORT], [PAUSE, 0.0, 0.0])
    (row,) = metrics_log.read(path)
    assert row["seconds"] < PAUSE / 2


def test_restart_excludes_the_time_before_it(meter_and_path):
    """Validation and checkpoints do not count as training time."""
    meter, path = meter_and_path
    run(meter, [SHORT], [0.0])
    time.sleep(PAUSE)
    meter.restart()
    run(meter, [SHORT, SHORT], [0.0, 0.0])
    rows = metrics_log.read(path)
    assert rows[1]["seconds"] < PAUSE / 2 and rows[1]["tokens"] == 16


def test_utilization_is_seconds_at_peak_per_second(meter_and_path):
    meter, path = meter_and_path
    for step in (1, 2, 3):
        meter.after_step(step, sums(1.0, 8), ROWS, at_peak=0.25)
        time.sleep(PAUSE / 10)
    meter.flush()
    (row,) = metrics_log.read(path)
    assert row["mfu"] == 3 * 0.25 / row["seconds"]


def test_no_utilization_without_a_known_peak(meter_and_path):
    meter, path = meter_and_path
    run(meter, [SHORT, SHORT], [0.0, 0.0])
    assert "mfu" not in metrics_log.read(path)[0]


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_non_finite_loss_stops_the_run(meter_and_path, loss):
    meter, path = meter_and_path
    meter.after_step(1, sums(1.0, 4), ROWS)
    meter.after_step(2, sums(loss, 4), ROWS)
    with pytest.raises(
        KdError, match=r"model: step 2: expected a finite .*\(grad_norm (nan|inf).*examples 7, 30\).*checkpoint: none"
    ):
        meter.flush()
    assert not path.exists()


def test_skipped_updates_are_logged_up_to_a_maximum(meter_and_path, capsys):
    meter, path = meter_and_path
    for step, loss in enumerate([1.0, np.nan, np.nan, 3.0], 1):
        meter.after_step(step, sums(loss, 4, skipped=np.isnan(loss)), ROWS)
    meter.flush()
    assert (
        "step 2: update skipped (grad_norm nan, loss nan; examples 7, 30); 1 of at most 2 skipped updates"
        in capsys.readouterr().err
    )
    (row,) = metrics_log.read(path)
    assert (row["loss"], row["grad_norm"], row["tokens"]) == (2.0, 2.0, 16) and "skipped" not in row
    meter.after_step(5, sums(np.nan, 4, skipped=True), ROWS)
    with pytest.raises(KdError, match=r"step 5: expected at most 2 skipped updates, got 3 .*examples 7, 30\).*lower"):
        meter.flush()
