"""Log lines, results, tables and progress bars: where they are printed and what they show."""

import contextlib
import os
import pty
import subprocess
import sys

import pytest

from kd_jax.runtime import progress
from kd_jax.runtime.progress import Bar


class ManualClock:
    """A clock that tests set."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock():
    return ManualClock()


def last_line(capsys):
    return capsys.readouterr().err.rstrip().split("\n")[-1].rstrip()


def test_log_goes_to_standard_error_and_results_to_standard_output(capsys):
    progress.log("on the way")
    progress.print_result("the result")
    assert capsys.readouterr() == ("the result\n", "on the way\n")


def test_plain_bar_prints_a_line_every_few_seconds(clock, capsys):
    bar = Bar("teacher", 7, clock=clock)
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


def test_rate_and_time_left_count_no_items_of_an_earlier_run(clock, capsys):
    bar = Bar("teacher", 100, clock=clock)
    bar.skip(40)
    clock.seconds += 10.0
    bar.advance(20)
    assert last_line(capsys) == "teacher: 60/100, 2.0/s, 0:20 left"


@pytest.mark.parametrize("terminal", [False, True])
def test_closed_bar_shows_the_time_taken_with_compilation(terminal, clock, capsys):
    bar = Bar("teacher", 20, terminal, clock)
    with bar.compiling("the step"):
        clock.seconds += 60.0
    clock.seconds += 5.0
    bar.advance(20)
    bar.close()
    line = last_line(capsys)
    assert "20/20" in line and line.endswith("4.0/s, 1:05 in all")


def test_plain_bar_logs_a_compilation_at_once(clock, capsys):
    bar = Bar("teacher", 20, clock=clock)
    with bar.compiling("12 x 32"):
        assert capsys.readouterr().err == "teacher: compiling 12 x 32\n"
        clock.seconds += 60.0
    with bar.compiling():
        pass
    assert capsys.readouterr().err == "teacher: 0/20\nteacher: compiling\n"


def test_nested_compilations_count_once(clock, capsys):
    bar = Bar("teacher", 20, clock=clock)
    with bar.compiling("outer"):
        clock.seconds += 10.0
        with bar.compiling("inner"):
            clock.seconds += 10.0
        clock.seconds += 10.0
    clock.seconds += 10.0
    bar.advance(10)
    assert last_line(capsys) == "teacher: 10/20, 1.0/s, 0:10 left"


def test_rate_is_right_after_an_error_in_compilation(clock, capsys):
    bar = Bar("teacher", 20, clock=clock)
    with contextlib.suppress(ValueError), bar.compiling(), bar.compiling("inner"):
        clock.seconds += 30.0
        raise ValueError
    clock.seconds += 10.0
    bar.advance(10)
    assert last_line(capsys) == "teacher: 10/20, 1.0/s, 0:10 left"


def test_each_shape_is_compiled_once(capsys):
    with progress.bar("write", 3) as bar:
        for shape in ((4, 8), (4, 8), (2, 16)):
            with bar.compiling_once(shape):
                bar.advance(1)
    lines = capsys.readouterr().err
    assert lines.count("write: compiling (4, 8)") == 1 and lines.count("write: compiling (2, 16)") == 1


TERMINAL_PROGRAM = """
from kd_jax.runtime import progress
with progress.bar("teacher [1/2]", 3) as bar:
    with bar.compiling("the step"):
        progress.log("a word")
        progress.print_result("a result")
        bar.advance(1)
        bar._live.refresh()
    bar.advance(1, loss=2.25)
    bar._live.refresh()
    bar.advance(1)
"""


def test_terminal_bar_leaves_results_to_standard_output(root):
    screen, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", TERMINAL_PROGRAM],
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=root,
        env=environment,
        check=True,
    )
    os.close(terminal)
    drawn = os.read(screen, 65536).decode()
    assert finished.stdout == b"a result\n"
    for text in ("teacher [1/2]", "a word", "compiling the step", "2/3", "loss 2.25", "3/3", "0:00 in all"):
        assert text in drawn
    assert "a result" not in drawn


def test_format_seconds():
    assert [progress.format_seconds(s) for s in (5, 65, 3700)] == ["0:05", "1:05", "1:01:40"]


def test_format_table_aligns_columns_and_breaks_headings_on_a_narrow_screen():
    head, rows = ("signal", "bytes a token", "KL lost"), [("top 64", "230.0", "0.012"), ("32 draws", "39.0", "–")]
    assert progress.format_table(head, rows) == (
        "signal    bytes a token  KL lost\n"
        "--------------------------------\n"
        "top 64            230.0    0.012\n"
        "32 draws           39.0        –"
    )
    assert progress.format_table(head, rows, width=32) == progress.format_table(head, rows)
    assert progress.format_table(head, rows, width=31) == (
        "          bytes\n"
        "              a     KL\n"
        "signal    token   lost\n"
        "----------------------\n"
        "top 64    230.0  0.012\n"
        "32 draws   39.0      –"
    )
    assert progress.format_table(head, []) == "signal  bytes a token  KL lost\n------------------------------"
