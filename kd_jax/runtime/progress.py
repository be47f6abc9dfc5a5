"""Log lines, results, tables and progress bars on the terminal; only the main process prints.

Only this module imports rich, when standard error is a terminal.
"""

import contextlib
import sys
import textwrap
import time
from collections.abc import Callable, Hashable, Iterator, Sequence

from kd_jax.printable import printable
from kd_jax.runtime import hosts, preemption

PLAIN_SECONDS = 10.0  # between two lines of a bar without a terminal


def log(text: str) -> None:
    """Print a line to standard error, on the main process."""
    if hosts.is_main_process():
        print(printable(text), file=sys.stderr, flush=True)


def print_result(text: str) -> None:
    """Print a result (a table, a closing line) to standard output, on the main process."""
    if hosts.is_main_process():
        print(printable(text), flush=True)


def format_seconds(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Format a table as text: the first column aligned left, the others right.

    In a table wider than `width` characters headings break at spaces. Cells never break, so it may stay wider.
    """
    columns = list(zip(*rows, strict=True)) or [()] * len(head)
    headings = [[heading] for heading in head]
    widths = [max(map(len, (heading, *column))) for heading, column in zip(head, columns, strict=True)]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        widths = [max(map(len, (*heading.split(), *column))) for heading, column in zip(head, columns, strict=True)]
        headings = [textwrap.wrap(heading, most) for heading, most in zip(head, widths, strict=True)]
    height = max(map(len, headings))
    lines = [*zip(*([""] * (height - len(parts)) + parts for parts in headings), strict=True), *rows]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([*text[:height], "-" * (sum(widths) + 2 * (len(widths) - 1)), *text[height:]])


class Bar:
    """Progress of some work, with its rate, metrics and time left.

    On a terminal it is one line that changes, elsewhere a line every few seconds. The rate counts neither items of an
    earlier run nor the seconds of compilation.
    """

    def __init__(self, title: str, total: int, terminal: bool = False, clock: Callable[[], float] = time.monotonic):
        """Start a bar for `total` items; `clock` returns seconds since any fixed time."""
        self._title, self._total, self._clock = title, total, clock
        self._start = self._last_line = clock()
        self._done = self._skipped = 0
        self._compile_seconds = 0.0
        self._status = ""  # of work between two items
        self._is_compiling = False
        self._metrics: dict[str, float] = {}
        self._shapes: set[Hashable] = set()
        self._live = _rich_progress() if terminal else None
        if self._live:
            self._task = self._live.add_task(title, total=total, text="")
            self._live.start()

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Count n more items as done, and show metrics beside the rate; raise Preempted if a stop was requested."""
        self._done += n
        self._metrics = metrics
        self._draw(self._text())
        hosts.heartbeat()
        preemption.poll()

    def skip(self, n: int) -> None:
        """Count n items as done by an earlier run; they do not count in the rate."""
        self._done += n
        self._skipped += n
        self._draw(self._text())

    @contextlib.contextmanager
    def compiling(self, program: object = "") -> Iterator[None]:
        """Show in the block that a program is compiled; its seconds do not count in the rate."""
        outer, self._status = self._status, f"compiling {program}".rstrip()
        is_inner, self._is_compiling = self._is_compiling, True
        if self._live is None:
            log(f"{self._title}: {self._status}")
        else:
            self._draw(self._status)
        start = self._clock()
        try:
            yield
        finally:
            self._status, self._is_compiling = outer, is_inner
            if not is_inner:
                self._compile_seconds += self._clock() - start
            self._draw(self._text())

    def compiling_once(self, shape: Hashable) -> contextlib.AbstractContextManager[None]:
        """Return `compiling` for the first block with this shape, and an empty context for later ones."""
        if shape in self._shapes:
            return contextlib.nullcontext()
        self._shapes.add(shape)
        return self.compiling(shape)

    def show(self, status: str) -> None:
        """Show a status in place of the rate, for work between two items such as validation; "" ends it."""
        self._status = status
        self._draw(self._text())
        hosts.heartbeat()

    def close(self) -> None:
        """Show the time that the work took, and stop drawing."""
        self._draw(", ".join([*self._rate_text(), f"{format_seconds(self._clock() - self._start)} in all"]), last=True)

    def _draw(self, text: str, last: bool = False) -> None:
        if self._live:
            self._live.update(self._task, completed=self._done, text=text)
            if last:
                self._live.stop()
        elif last or self._clock() - self._last_line >= PLAIN_SECONDS:
            log(f"{self._title}: {self._done}/{self._total}" + (text and f", {text}"))
            self._last_line = self._clock()

    def _text(self) -> str:
        if self._status:
            return self._status
        metrics = [f"{name} {value:.4g}" for name, value in self._metrics.items()]
        rate = self._rate()
        left = [f"{format_seconds((self._total - self._done) / rate)} left"] if rate else []
        return ", ".join([*self._rate_text(), *metrics, *left])

    def _rate_text(self) -> list[str]:
        rate = self._rate()
        return [f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"] if rate else []

    def _rate(self) -> float:
        """Items per second of this run's work; 0 before the first."""
        seconds = self._clock() - self._start - self._compile_seconds
        return (self._done - self._skipped) / max(seconds, 1e-9)


def _rich_progress():
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
    from rich.table import Column

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=28)),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
        expand=True,
        redirect_stdout=sys.stdout.isatty(),  # rich would send piped results to the bar's standard error
    )


@contextlib.contextmanager
def bar(title: str, total: int) -> Iterator[Bar]:
    """Show a progress bar while the block runs."""
    work = Bar(title, total, terminal=sys.stderr.isatty() and hosts.is_main_process())
    try:
        yield work
    finally:
        work.close()
