"""Texts of strangers for a terminal or a report: control characters are shown as escapes."""

import re

# Controls (C0 without tab and newline, DEL, C1), line separators, marks that reorder a line, lone surrogates, and tags.
# Joiners stay: Persian, Hindi and emoji need them.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""Return the text with escapes such as \x1b in place of control characters; tabs and newlines stay.

    A terminal obeys control characters: one text could hide, move or recolour others.

    Examples:
      >>> printable("\x1b[2Jcats\u202e\tdogs\n")
      '\\x1b[2Jcats\\u202e\tdogs\n'
    """
    return CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)
