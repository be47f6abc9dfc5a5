"""What a person sees, where it goes, and the log that survives a kill."""

import contextlib
import os
import pty
import subprocess
import sys

import pytest

from kd_jax.runtime import progress
from kd_jax.runtime.progress import Pace, PlainBar, TerminalBar


class HandClock:
    """A clock that is set by hand."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def last_line(capsys):
    return capsys.readouterr().err.rstrip().split("\n")[-1].rstrip()


def test_what_goes_where(capsys):
    progress.log("on the way")
    progress.print_result("the result")
    assert capsys.readouterr() == ("the result\n", "on the way\n")


def test_pace_counts_neither_what_an_earlier_run_did_nor_the_time_at_rest():
    pace = Pace(total=100, begun=10.0)
    assert (pace.rate(15.0), pace.left(15.0)) == (0.0, None)
    pace = pace.skip(40).advance(6)
    assert (pace.rate(13.0), pace.left(13.0)) == (2.0, 27.0)
    resting = pace.stop(13.0)
    assert (resting.rate(500.0), resting.left(500.0)) == (2.0, 27.0)
    assert resting.stop(400.0) == resting
    assert (resting.resume(513.0).rate(516.0), resting.resume(513.0).left(516.0)) == (1.0, 54.0)


def test_plain_lines_where_there_is_no_terminal(capsys):
    clock = HandClock()
    bar = PlainBar("teacher", 7, clock)
    bar.skip(1)
    for _ in range(4):
        clock.seconds += 5.0
        bar.advance(1, loss=2.5)
    clock.seconds += 4.0
    bar.advance(2)
    bar.close()
    assert capsys.readouterr().err.split("\n") == [
        "teacher: 3/7, 5.0 s each, loss 2.5, 0:20 left",
        "teacher: 5/7, 5.0 s each, loss 2.5, 0:10 left",
        "teacher: 7/7, 4.0 s each, 0:24 in all",
        "",
    ]


@pytest.mark.parametrize("bar_type", [PlainBar, TerminalBar])
def test_a_finished_bar_shows_the_time_taken_compilation_included(bar_type, capsys):
    clock = HandClock()
    bar = bar_type("teacher", 20, clock)
    with bar.compiling("the step"):
        clock.seconds += 60.0
    clock.seconds += 5.0
    bar.advance(20)
    bar.close()
    line = last_line(capsys)
    assert "20/20" in line and line.endswith("4.0 a second, 1:05 in all")


def test_a_plain_bar_says_at_once_that_it_compiles(capsys):
    clock = HandClock()
    bar = PlainBar("teacher", 20, clock)
    with bar.compiling("12 x 32"):
        assert capsys.readouterr().err == "teacher: compiling 12 x 32\n"
        clock.seconds += 60.0
    with bar.compiling():
        pass
    assert capsys.readouterr().err == "teacher: 0/20\nteacher: compiling\n"


def test_compiling_within_compiling_counts_once(capsys):
    clock = HandClock()
    bar = PlainBar("teacher", 20, clock)
    with bar.compiling("outer"):
        clock.seconds += 10.0
        with bar.compiling("inner"):
            clock.seconds += 10.0
        clock.seconds += 10.0
    clock.seconds += 10.0
    bar.advance(10)
    assert last_line(capsys) == "teacher: 10/20, 1.0 a second, 0:10 left"


def test_after_an_error_in_compilation_the_clock_goes_on(capsys):
    clock = HandClock()
    bar = PlainBar("teacher", 20, clock)
    with contextlib.suppress(ValueError), bar.compiling(), bar.compiling("inner"):
        clock.seconds += 30.0
        raise ValueError
    clock.seconds += 10.0
    bar.advance(10)
    assert last_line(capsys) == "teacher: 10/20, 1.0 a second, 0:10 left"


ON_A_TERMINAL = """
from kd_jax.artifacts import runlog
with progress.bar("teacher [1/2]", 3) as bar:
    with bar.compiling("the step"):
        progress.log("a word")
        progress.print_result("a result")
        bar.advance(1)
        bar._progress.refresh()
    bar.advance(1, loss=2.25)
    bar._progress.refresh()
    bar.advance(1)
"""


def test_a_bar_on_a_terminal_leaves_results_to_standard_output(root):
    screen, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL],
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=root,
        env=environment,
        check=True,
    )
    os.close(terminal)
    drawn = os.read(screen, 65536).decode()
    assert done.stdout == b"a result\n"
    for text in ("teacher [1/2]", "a word", "compiling the step", "2/3", "loss 2.25", "3/3", "0:00 in all"):
        assert text in drawn
    assert "a result" not in drawn


def test_clock():
    assert [progress.format_seconds(s) for s in (5, 65, 3700)] == ["0:05", "1:05", "1:01:40"]


def test_a_table_is_aligned_and_its_headings_break_where_the_screen_is_narrow():
    head, rows = ("signal", "bytes a token", "KL lost"), [("top 64", "230.0", "0.012"), ("32 draws", "39.0", "–")]
    assert progress.format_table(head, rows) == (
        "signal    bytes a token  KL lost\n"
        "--------------------------------\n"
        "top 64            230.0    0.012\n"
        "32 draws           39.0        –"
    )
    assert progress.format_table(head, rows, fits=32) == progress.format_table(head, rows)
    assert progress.format_table(head, rows, fits=31) == (
        "          bytes\n"
        "              a     KL\n"
        "signal    token   lost\n"
        "----------------------\n"
        "top 64    230.0  0.012\n"
        "32 draws   39.0      –"
    )
    assert progress.format_table(head, []) == "signal  bytes a token  KL lost\n------------------------------"


def test_a_shape_is_compiled_where_the_bar_meets_it_first(capsys):
    with progress.bar("write", 3) as bar:
        for shape in ((4, 8), (4, 8), (2, 16)):
            with bar.meeting(shape):
                bar.advance(1)
    said = capsys.readouterr().err
    assert said.count("write: compiling (4, 8)") == 1 and said.count("write: compiling (2, 16)") == 1
