"""What a person sees, and the log that survives a kill."""

from kd_jax.artifacts import runlog


def test_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(runlog, "PLAIN_SECONDS", 0.0)
    with runlog.progress("teacher", 3) as bar:
        bar.skip(1)
        bar.advance(1, loss=2.5)
        bar.advance(1, loss=2.25)
    lines = capsys.readouterr().err.strip().split("\n")
    assert lines[0].startswith("teacher: 2/3, ") and "loss 2.5" in lines[0] and "left" in lines[0]
    assert lines[-1].startswith("teacher: 3/3, ") and lines[-1].endswith("in all")


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(runlog.sys.stderr, "isatty", lambda: True, raising=False)
    with runlog.progress("teacher", 2) as bar:
        bar.skip(1)
        bar.advance(1, loss=2.5)
    assert "teacher" in capsys.readouterr().err


def test_rows_after_the_checkpoint_and_a_torn_row_are_dropped(tmp_path):
    log = runlog.MetricsLog(tmp_path / "m.jsonl")
    for step in range(4):
        log.append({"step": step})
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write('{"step": 1')
    log.truncate_after(2)
    assert runlog.read(tmp_path / "m.jsonl") == [{"step": 0}, {"step": 1}, {"step": 2}]


def test_clock():
    assert [runlog.clock(s) for s in (5, 65, 3700)] == ["0:05", "1:05", "1:01:40"]
