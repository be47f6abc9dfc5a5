"""What a run's log says: means over tokens, the time of training alone, and where a loss stopped being finite."""

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
MOST = 2  # updates that may be left out
ROWS = np.array([7, 30, -1])  # the examples of a batch, whose last row fills up
RATES = [0.1 * step for step in range(1, 50)]  # of updates 1, 2, ...


@pytest.fixture
def measured(tmp_path):
    """(meter, its log's path)."""
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(tmp_path))
        bar = stack.enter_context(progress.bar("model", 50))
        yield (
            Meter("model", checkpoints, metrics_log.MetricsLog(tmp_path / "log.jsonl"), bar, RATES, MOST),
            tmp_path / "log.jsonl",
        )


def sums(loss, tokens, skipped=False):
    """A step's: this mean loss over so many tokens, the gradient's norm, and whether the update was left out."""
    once = {"grad_norm": loss, "skipped": skipped}
    return {"loss": Sum(np.float32(loss * tokens), np.int32(tokens))} | {
        name: Sum(np.float32(value), np.int32(1)) for name, value in once.items()
    }


def test_means_are_weighted_by_tokens_and_norms_by_steps(measured):
    """Trap 3: (1.0 x 10 + 5.0 x 1 + 3.0 x 4) / 15, where the mean of means would be 3."""
    meter, path = measured
    for step, (loss, tokens) in enumerate([(1.0, 10), (5.0, 1), (3.0, 4)], 1):
        meter.after(step, sums(loss, tokens), ROWS)
    assert not path.exists()
    meter.flush()
    (row,) = metrics_log.read(path)
    np.testing.assert_allclose([row["loss"], row["grad_norm"]], [27 / 15, 3.0], rtol=1e-6)
    assert (row["step"], row["learning_rate"]) == (3, RATES[2])


def test_every_step_is_in_one_row(measured):
    """A row each LOG_EVERY steps and one for what is left; a step is read when the next one is on its way."""
    meter, path = measured
    for step in range(1, 2 * LOG_EVERY + 3):
        meter.after(step, sums(float(step), 1), ROWS)
        assert len(metrics_log.read(path) if path.exists() else []) == (step - 1) // LOG_EVERY
    meter.flush()
    rows = metrics_log.read(path)
    assert [row["step"] for row in rows] == [LOG_EVERY, 2 * LOG_EVERY, 2 * LOG_EVERY + 2]
    ranges = [(1, LOG_EVERY), (LOG_EVERY + 1, 2 * LOG_EVERY), (2 * LOG_EVERY + 1, 2 * LOG_EVERY + 2)]
    np.testing.assert_allclose([row["loss"] for row in rows], [(first + last) / 2 for first, last in ranges], rtol=1e-6)


PAUSE = 0.3  # seconds, far above all else that a step does here


def run(meter, batches, pauses):
    """One step for each batch, whose call takes as long as its pause; 8 tokens each."""
    for step, (batch, pause) in enumerate(zip(batches, pauses, strict=True), 1):
        with meter.compiling(batch):
            time.sleep(pause)
        meter.after(step, sums(1.0, 8), ROWS)
    meter.flush()


def test_a_new_shape_of_batch_is_compiled_and_its_time_left_out(measured):
    meter, path = measured
    run(meter, [SHORT, SHORT, LONG, LONG], [0.0, 0.0, PAUSE, 0.0])
    (row,) = metrics_log.read(path)
    assert row["seconds"] < PAUSE / 2 and 8 <= row["tokens"] <= 24


def test_the_first_steps_compilation_is_left_out(measured):
    meter, path = measured
    run(meter, [SHORT, SHORT, SHORT], [PAUSE, 0.0, 0.0])
    (row,) = metrics_log.read(path)
    assert row["seconds"] < PAUSE / 2


def test_time_between_restarts_is_left_out(measured):
    """As evaluations and checkpoints are."""
    meter, path = measured
    run(meter, [SHORT], [0.0])
    time.sleep(PAUSE)
    meter.restart()
    run(meter, [SHORT, SHORT], [0.0, 0.0])
    rows = metrics_log.read(path)
    assert rows[1]["seconds"] < PAUSE / 2 and rows[1]["tokens"] == 16


def test_tokens_a_second_and_utilisation_are_of_the_time_that_is_counted(measured):
    meter, path = measured
    for step in (1, 2, 3):
        meter.after(step, sums(1.0, 8), ROWS, at_peak=0.25)
        time.sleep(PAUSE / 10)
    meter.flush()
    (row,) = metrics_log.read(path)
    assert row["tokens_per_second"] == row["tokens"] / row["seconds"]
    assert row["mfu"] == 3 * 0.25 / row["seconds"]


def test_where_no_peak_is_known_there_is_no_utilisation(measured):
    meter, path = measured
    run(meter, [SHORT, SHORT], [0.0, 0.0])
    assert "mfu" not in metrics_log.read(path)[0]


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_and_was_learnt_from_stops_the_run(measured, loss):
    meter, path = measured
    meter.after(1, sums(1.0, 4), ROWS)
    meter.after(2, sums(loss, 4), ROWS)
    with pytest.raises(KdError, match=r"model: step 2 \(grad_norm (nan|inf).*examples 7, 30\) is not finite.*none"):
        meter.flush()
    assert not path.exists()


def test_updates_that_were_left_out_are_said_count_in_no_mean_and_are_too_many_at_last(measured, capsys):
    meter, path = measured
    for step, loss in enumerate([1.0, np.nan, np.nan, 3.0], 1):
        meter.after(step, sums(loss, 4, skipped=np.isnan(loss)), ROWS)
    meter.flush()
    said = capsys.readouterr().err
    assert "step 2 (grad_norm nan, loss nan; rows from examples 7, 30): its update is left out, 1 of at most 2" in said
    (row,) = metrics_log.read(path)
    assert (row["loss"], row["grad_norm"], row["tokens"]) == (2.0, 2.0, 16) and "skipped" not in row
    meter.after(5, sums(np.nan, 4, skipped=True), ROWS)
    with pytest.raises(KdError, match=r"step 5 .* examples 7, 30\) is the update number 3 that is left out; .*lower"):
        meter.flush()
