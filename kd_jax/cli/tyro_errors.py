"""tyro's errors as one line."""

import contextlib
import io
import re
from collections.abc import Iterator

from kd_jax.errors import KdError

BORDERS = str.maketrans("╭╮╰╯│─", "     -")  # of tyro's panels, where standard output is UTF-8


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Raise a KdError of one line where tyro would print a panel and exit with code 2."""
    panel = io.StringIO()
    try:
        with contextlib.redirect_stderr(panel):
            yield
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise KdError(summarize(panel.getvalue())) from stop


def summarize(panel: str) -> str:
    r"""Return the message of tyro's panel and the nearest options, without the help texts.

    Examples:
      >>> summarize("╭─ Value error ─╮\n│ Error parsing --seed: no integer: 'x' │\n│ ─── │\n│ Argument helptext: │")
      "Error parsing --seed: no integer: 'x'"
    """
    lines = [line.rstrip() for line in panel.translate(BORDERS).splitlines()[1:] if line.strip(" -")]
    message: list[str] = []
    nearest: list[str] = []
    missing: list[str] = []
    for line in lines:
        text = line.strip()
        if text.startswith(("Argument helptext", "For full helptext", "Got errors")):
            break
        if message and message[0].startswith("Missing from"):
            missing += [text] if re.match(r" {6}\S", line) else []  # help texts are indented further
        elif text.startswith("--"):
            nearest.append(text.split()[0].rstrip(","))
        elif not nearest and not text.startswith(("Perhaps you meant", "Arguments similar")):
            message.append(text)
    if missing:
        return f"{message[0].removeprefix('Missing from ')} missing {', '.join(missing)}"
    suggestion = f"; did you mean {' or '.join(nearest[:2])}?" if nearest else ""
    return (" ".join(message) or "unreadable options") + suggestion
