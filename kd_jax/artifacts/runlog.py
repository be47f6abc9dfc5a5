"""What a person sees of a run, and what it leaves to be read later: the only rich import."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLAIN_SECONDS = 10.0


def say(text: str) -> None:
    """One line for the person watching, on standard error."""
    print(text, file=sys.stderr, flush=True)


class PlainBar:
    """Progress without a terminal: a line every few seconds, with rate, metrics and time left."""

    def __init__(self, title: str, total: int):
        self._title, self._total, self._done, self._skipped, self._said_at = title, total, 0, 0, 0
        self._start = self._said = time.monotonic()

    def advance(self, n: int = 1, **metrics: float) -> None:
        """n more are done; metrics are shown beside the rate of the last few seconds."""
        self._done += n
        now = time.monotonic()
        if now - self._said >= PLAIN_SECONDS:
            rate = (self._done - self._said_at) / (now - self._said)
            left = f", {clock((self._total - self._done) / rate)} left"
            shown = "".join(f", {name} {value:.4g}" for name, value in metrics.items())
            say(f"{self._title}: {self._done}/{self._total}, {rate:.1f} a second{shown}{left}")
            self._said, self._said_at = now, self._done

    def skip(self, n: int) -> None:
        """n were done by an earlier run: they do not count in the rate."""
        self._done, self._skipped, self._said_at = self._done + n, self._skipped + n, self._said_at + n

    def close(self) -> None:
        """The closing line."""
        seconds = time.monotonic() - self._start
        rate = (self._done - self._skipped) / max(seconds, 1e-9)
        say(f"{self._title}: {self._done}/{self._total}, {rate:.1f} a second, {clock(seconds)} in all")


class TerminalBar:
    """Progress on a terminal."""

    def __init__(self, title: str, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._base, self._done, self._start = 0, 0, time.monotonic()
        shown = ("{task.description}", "{task.fields[rate]}", "{task.fields[metrics]}")
        columns = [TextColumn(text) for text in shown]
        self._progress = Progress(
            columns[0],
            BarColumn(),
            MofNCompleteColumn(),
            *columns[1:],
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(title, total=total, rate="", metrics="")
        self._progress.start()

    def advance(self, n: int = 1, **metrics: float) -> None:
        """As PlainBar's."""
        self._done += n
        rate = (self._done - self._base) / max(time.monotonic() - self._start, 1e-9)
        shown = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._progress.update(self._task, advance=n, rate=f"{rate:.1f}/s", metrics=shown)

    def skip(self, n: int) -> None:
        """As PlainBar's."""
        self._done, self._base = self._done + n, self._base + n
        self._progress.update(self._task, advance=n)

    def close(self) -> None:
        """Leaves the bar on the screen."""
        self._progress.stop()


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[PlainBar | TerminalBar]:
    """A bar with rate, metrics and time left; plain lines where standard error is no terminal.

    Args:
      title: what is going on.
      total: how many there are to do.
    """
    bar = TerminalBar(title, total) if sys.stderr.isatty() else PlainBar(title, total)
    try:
        yield bar
    finally:
        bar.close()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class MetricsLog:
    """Metrics as JSON lines, one row per `append`."""

    def __init__(self, path: Path):
        self._path = path

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row and hands it to the system at once."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drops rows of later steps, and a last row that a kill cut short: a run goes on from `step`."""
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text().split("\n")[:-1] if json.loads(line)["step"] <= step]
        beside = self._path.with_name(self._path.name + ".part")
        beside.write_text("".join(line + "\n" for line in kept))
        os.replace(beside, self._path)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a MetricsLog."""
    return [json.loads(line) for line in path.read_text().splitlines()]
