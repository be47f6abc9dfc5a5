"""The log of a training: partial rows are dropped, damaged ones named."""

import json

import pytest

from kd_jax.artifacts import metrics_log
from kd_jax.errors import KdError


def test_contains_finds_a_metric_of_a_step(tmp_path):
    log = metrics_log.MetricsLog(tmp_path / "m.jsonl")
    assert not log.contains(0, "loss")
    log.append({"step": 0, "loss": 1.0})
    log.append({"step": 2, "other": 1.0})
    assert log.contains(0, "loss") and not log.contains(2, "loss") and not log.contains(1, "loss")


def test_rows_after_the_checkpoint_and_a_partial_row_are_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    log = metrics_log.MetricsLog(path)
    for step in range(4):
        log.append({"step": step, "loss": 0.1 + step})
    with open(path, "a") as file:
        file.write('{"step": 1')
    log.truncate_after(2)
    assert metrics_log.read(path) == [{"step": step, "loss": 0.1 + step} for step in range(3)]
    log.truncate_after(-1)
    assert metrics_log.read(path) == []
    metrics_log.MetricsLog(tmp_path / "none.jsonl").truncate_after(2)


def test_partial_file_of_another_process_is_kept(tmp_path):
    other = tmp_path / "m.jsonl.part"
    other.write_text("another's")
    metrics_log.MetricsLog(tmp_path / "m.jsonl").append({"step": 0})
    metrics_log.MetricsLog(tmp_path / "m.jsonl").truncate_after(5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.jsonl", "m.jsonl.part"]
    assert other.read_text() == "another's"


def test_only_a_line_feed_ends_a_row(tmp_path):
    row = {"step": 0, "text": "a\u2028b\x85c"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert metrics_log.read(tmp_path / "m.jsonl") == [row]


GOOD = b'{"step": 0}\n'


@pytest.mark.parametrize(
    "damaged, line",
    [
        (b'{"step": 1\n', 2),
        (b"\n", 2),
        (b'{"loss": 1.0}\n', 2),
        (b'{"step": "1"}\n', 2),
        (b"[1]\n", 2),
        (b"\xff\xfe\n", 2),
        (GOOD + b"<<<<<<< HEAD\n" + GOOD, 3),
    ],
)
def test_damaged_row_is_named(damaged, line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + damaged)
    for act in (lambda: metrics_log.read(path), lambda: metrics_log.MetricsLog(path).truncate_after(5)):
        with pytest.raises(KdError) as error:
            act()
        text = str(error.value)
        assert text.startswith(f"{path}: expected a JSON object with a step in line {line}, got ")
        assert "--force" in text and "\n" not in text
    assert path.read_bytes() == GOOD + damaged


def test_truncated_or_missing_log_is_refused_by_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + b'{"st')
    with pytest.raises(KdError, match=r"metrics\.jsonl: .* in line 2, got '\{\"st'"):
        metrics_log.read(path)
    with pytest.raises(KdError, match=r"none\.jsonl: expected the training's log, missing"):
        metrics_log.read(tmp_path / "none.jsonl")
