"""tyro's errors as one line, in the words of the field's type."""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_jax.errors import KdError
from kd_jax.fields import describe

BORDERS = str.maketrans("╭╮╰╯│─", "     -")  # of tyro's panels, where standard output is UTF-8


@contextlib.contextmanager
def one_line_errors(words: Sequence[str], types: Mapping[str, Any]) -> Iterator[None]:
    """Raise a KdError of one line where tyro would print a panel and exit with code 2.

    Args:
      words: the command line.
      types: option without its dashes, words joined by `_` -> type of its value.
    """
    panel = io.StringIO()
    try:
        with contextlib.redirect_stderr(panel):
            yield
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise KdError(summarize(panel.getvalue(), words, types)) from stop


def summarize(panel: str, words: Sequence[str], types: Mapping[str, Any]) -> str:
    r"""Return the message of tyro's panel without the help texts.

    Examples:
      >>> panel = "╭─ Value error ─╮\n│ Error parsing --seed: no integer: 'x' │\n│ ─── │\n│ Argument helptext: │"
      >>> summarize(panel, ["--seed", "x"], {"seed": int})
      "--seed: expected an integer, got 'x'."
    """
    lines = [line.rstrip() for line in panel.translate(BORDERS).splitlines()[1:] if line.strip(" -")]
    message: list[str] = []
    missing: list[str] = []
    for line in lines:
        text = line.strip()
        if text.startswith(("Argument helptext", "For full helptext", "Got errors", "Perhaps you meant", "Arguments")):
            break
        if message and message[0].startswith("Missing from"):
            missing += [text] if re.match(r" {6}\S", line) else []  # help texts are indented further
        else:
            message.append(text)
    text = " ".join(message)
    if missing:
        return f"{message[0].removeprefix('Missing from ')} missing {', '.join(missing)}"
    if text.startswith("Unrecognized options: "):
        return f"unexpected word {text.removeprefix('Unrecognized options: ').split(', ')[0]!r}. Leave it out."
    for option in re.findall(r"--([\w.-]+)", text):
        if (name := option.replace("-", "_")) in types:
            values = given(words, name)
            shown = " ".join(map(repr, values)) or "none"
            expected = describe(types[name]).removeprefix("a tuple of ").removesuffix(" or None")
            return f"--{option}: expected {expected}, got {shown}."
    return text or "unreadable options"


def given(words: Sequence[str], name: str) -> list[str]:
    """Return the values of an option, whose name has `_` between its words, in a command line.

    Examples:
      >>> given(["--seed", "5", "--top-k", "3", "--beam=2"], "top_k"), given(["--beam=2"], "beam")
      (['3'], ['2'])
    """
    values: list[str] = []
    reading = False
    for word in words:
        if re.match(r"--\w", word):
            option, equals, value = word[2:].partition("=")
            reading = option.replace("-", "_") == name
            values += [value] if reading and equals else []
        elif reading:
            values.append(word)
    return values
