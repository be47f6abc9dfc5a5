"""tyro's errors as one line."""

import contextlib
import io
import re
from collections.abc import Iterator

from kd_jax.errors import KdError


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Raise a KdError of one line where tyro would print a panel and exit with code 2.

    Raises:
      KdError: if tyro refuses the words.
      SystemExit: with code 0 after --help.
    """
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
      >>> lines = ["╭─ Required options ─╮", "│ Missing from kd-jax run: │", "│     CONFIG │", "│         A file. │"]
      >>> summarize("\n".join(lines))
      'kd-jax run: missing CONFIG'
    """
    lines = [line.strip("╭╮╰╯│ ─") for line in panel.splitlines()[1:]]
    if lines and lines[0].startswith("Missing from"):
        missing = re.findall(r"^│ {5}(\S.*?) *│$", panel.partition("──── │")[0], re.MULTILINE)
        return f"{lines[0].removeprefix('Missing from ')} missing {', '.join(missing)}"
    message, nearest = [], []
    for line in filter(None, lines):
        if line.startswith(("Argument helptext", "For full helptext", "Got errors")):
            break
        (nearest if line.startswith("--") else message).append(line)
    suggestion = f"; did you mean {' or '.join(line.split()[0] for line in nearest[:2])}?" if nearest else ""
    return (" ".join(message) or "unreadable options") + suggestion
