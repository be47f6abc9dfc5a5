"""What a person sees of a run, and what it leaves to be read later: the only rich import."""

import contextlib
import dataclasses
import sys
import textwrap
import time
from collections.abc import Callable, Hashable, Iterator, Sequence

from kd_jax.runtime import hosts, preemption

PLAIN_SECONDS = 10.0


def log(text: str) -> None:
    """One line for the person watching, on standard error; of several hosts the first speaks."""
    if hosts.is_main_process():
        print(text, file=sys.stderr, flush=True)


def print_result(text: str) -> None:
    """A result (a table, a closing line), on standard output, where it can be piped; the first host's."""
    if hosts.is_main_process():
        print(text, flush=True)


def format_seconds(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    Examples:
      >>> format_seconds(65), format_seconds(3700)
      ('1:05', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]], fits: int | None = None) -> str:
    """Aligned text under a rule: the first column to the left, the others to the right.

    Args:
      head: one heading per column.
      rows: one cell per column, already formatted.
      fits: columns of the screen, such as 80: where the table is wider, its headings break at spaces. Cells never
        do, so a table of many wide cells may stay wider.

    Examples:
      >>> print(format_table(("model", "BLEU greedy"), [("teacher", "22.40"), ("student", "9.09")], fits=16))
                 BLEU
      model    greedy
      ---------------
      teacher   22.40
      student    9.09
    """
    columns = list(zip(*rows, strict=True)) or [()] * len(head)
    headings = [[heading] for heading in head]
    widths = [max(map(len, (heading, *column))) for heading, column in zip(head, columns, strict=True)]
    if fits is not None and sum(widths) + 2 * (len(widths) - 1) > fits:
        widths = [max(map(len, (*heading.split(), *column))) for heading, column in zip(head, columns, strict=True)]
        headings = [textwrap.wrap(heading, width) for heading, width in zip(head, widths, strict=True)]
    height = max(map(len, headings))
    lines = [*zip(*([""] * (height - len(broken)) + broken for broken in headings), strict=True), *rows]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([*text[:height], "-" * (sum(widths) + 2 * (len(widths) - 1)), *text[height:]])


@dataclasses.dataclass(frozen=True)
class Pace:
    """Rate and time left, from counts and readings of a clock in seconds; it reads no clock itself.

    Attributes:
      total: items to do.
      begun: the clock's reading at the start.
      done: items done so far, skipped ones included.
      skipped: items done by an earlier run; they do not count in the rate.
      idle: seconds for which the work stood still (compilation); they count neither in the rate nor in the time left.
      stopped: the reading since which it stands still; None while it goes on.

    Examples:
      >>> pace = Pace(total=10, begun=0.0).skip(2).stop(now=0.0).resume(now=30.0).advance(4)
      >>> pace.rate(now=32.0), pace.left(now=32.0)
      (2.0, 2.0)
    """

    total: int
    begun: float
    done: int = 0
    skipped: int = 0
    idle: float = 0.0
    stopped: float | None = None

    def advance(self, n: int) -> "Pace":
        """n more are done."""
        return dataclasses.replace(self, done=self.done + n)

    def skip(self, n: int) -> "Pace":
        """n were done by an earlier run."""
        return dataclasses.replace(self, done=self.done + n, skipped=self.skipped + n)

    def stop(self, now: float) -> "Pace":
        """The work stands still from now on; without effect where it does already."""
        return dataclasses.replace(self, stopped=now) if self.stopped is None else self

    def resume(self, now: float) -> "Pace":
        """The work goes on."""
        return dataclasses.replace(self, idle=self.idle + now - self.stopped, stopped=None)

    def rate(self, now: float) -> float:
        """Items a second of work, over the whole run; 0 before the first."""
        worked = (now if self.stopped is None else self.stopped) - self.begun - self.idle
        return (self.done - self.skipped) / max(worked, 1e-9)

    def left(self, now: float) -> float | None:
        """Seconds of work left at this rate; None before the first item."""
        rate = self.rate(now)
        return (self.total - self.done) / rate if rate else None


class Bar:
    """Progress with rate, metrics and time left; a subclass draws it.

    Args:
      title: what is going on.
      total: how many there are to do.
      now: the clock, in seconds from anywhere.
    """

    def __init__(self, title: str, total: int, now: Callable[[], float] = time.monotonic):
        self._title, self._now, self._pace = title, now, Pace(total, now())
        self._metrics: dict[str, float] = {}
        self._status, self._shapes = "", set()

    def advance(self, n: int = 1, **metrics: float) -> None:
        """n more are done; metrics are shown beside the rate.

        Raises:
          Preempted: if the run was asked to stop: whatever shows a bar can end between two items.
        """
        self._pace, self._metrics = self._pace.advance(n), metrics
        self._draw(self._text())
        hosts.heartbeat()
        preemption.poll()

    def skip(self, n: int) -> None:
        """n were done by an earlier run: they do not count in the rate."""
        self._pace = self._pace.skip(n)
        self._draw(self._text())

    @contextlib.contextmanager
    def compiling(self, what: str = "") -> Iterator[None]:
        """The bar says so while inside; the seconds count neither in the rate nor in the time left."""
        outer, self._status = self._status, f"compiling {what}".rstrip()
        self._pace = self._pace.stop(self._now())
        self._draw(self._text())
        try:
            yield
        finally:
            self._status = outer
            if not outer:
                self._pace = self._pace.resume(self._now())
            self._draw(self._text())

    def meeting(self, shape: Hashable) -> contextlib.AbstractContextManager[None]:
        """`compiling` where this bar meets a shape for the first time; nothing after that."""
        new = shape not in self._shapes
        self._shapes.add(shape)
        return self.compiling(str(shape)) if new else contextlib.nullcontext()

    def close(self) -> None:
        """Says how long it took."""
        self._draw(", ".join([*self._speed(), f"{format_seconds(self._now() - self._pace.begun)} in all"]), last=True)

    def _draw(self, text: str, last: bool = False) -> None:
        raise NotImplementedError

    def _text(self) -> str:
        if self._status:
            return self._status
        metrics = [f"{name} {value:.4g}" for name, value in self._metrics.items()]
        left = self._pace.left(self._now())
        return ", ".join([*self._speed(), *metrics, *([] if left is None else [f"{format_seconds(left)} left"])])

    def _speed(self) -> list[str]:
        rate = self._pace.rate(self._now())
        return [f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each"] if rate else []


class PlainBar(Bar):
    """Progress without a terminal: a line every few seconds."""

    def __init__(self, title: str, total: int, now: Callable[[], float] = time.monotonic):
        super().__init__(title, total, now)
        self._said = now()

    @contextlib.contextmanager
    def compiling(self, what: str = "") -> Iterator[None]:
        """As Bar's; one line at once."""
        log(f"{self._title}: compiling {what}".rstrip())
        with super().compiling(what):
            yield

    def _draw(self, text: str, last: bool = False) -> None:
        if last or (not self._status and self._now() - self._said >= PLAIN_SECONDS):
            log(f"{self._title}: {self._pace.done}/{self._pace.total}" + (text and f", {text}"))
            self._said = self._now()


class TerminalBar(Bar):
    """Progress on a terminal: one line that changes."""

    def __init__(self, title: str, total: int, now: Callable[[], float] = time.monotonic):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
        from rich.table import Column

        super().__init__(title, total, now)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=28)),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            expand=True,
            redirect_stdout=sys.stdout.isatty(),  # rich would send piped results to the bar's standard error
        )
        self._task = self._progress.add_task(title, total=total, text="")
        self._progress.start()

    def _draw(self, text: str, last: bool = False) -> None:
        self._progress.update(self._task, completed=self._pace.done, text=text)
        if last:
            self._progress.stop()


@contextlib.contextmanager
def bar(title: str, total: int) -> Iterator[Bar]:
    """A bar with rate, metrics and time left; plain lines where standard error is no terminal.

    Args:
      title: what is going on.
      total: how many there are to do.
    """
    bar = TerminalBar(title, total) if sys.stderr.isatty() and hosts.is_main_process() else PlainBar(title, total)
    try:
        yield bar
    finally:
        bar.close()
