"""Code blocks of Markdown pages, as a reader would copy them.

A comment before a block says how a test treats it:

    <!-- not run: REASON -->            the block is not executed
    <!-- run with: OLD => NEW; ... -->  OLD is replaced by NEW first, so that it runs on small settings
    <!-- prints: TEXT -->               the block's output contains TEXT
"""

import re
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+)(?:\{code-block\} *)?(?P<language>bash|python|sh|shell|console|pycon)\s*$"
    r"(?P<code>.*?)^(?P=indent)(?P=ticks)\s*$",
    re.DOTALL | re.MULTILINE,
)
MARK = re.compile(r"^ *<!-- (?P<key>not run|run with|prints): (?P<value>.*?) -->\s*$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block: its language, code with replacements made, line, and how to treat it."""

    language: str
    code: str
    line: int
    skip_reason: str
    prints: tuple[str, ...]


def code_blocks(page: Path) -> list[Block]:
    """Return the shell and Python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    blocks, end = [], 0
    for match in FENCE.finditer(text):
        # Only marks directly before the fence, with nothing but blank lines and other marks between.
        before = text[end : match.start()]
        tail = re.search(r"(?:^ *<!-- (?:not run|run with|prints): (?:(?!-->).)*? -->\s*\n)*\Z", before, re.M | re.S)
        marks = {"not run": [], "run with": [], "prints": []}
        for mark in MARK.finditer(tail[0] if tail else ""):
            marks[mark["key"]].append(" ".join(mark["value"].split()))
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE).strip("\n") + "\n"
        for replacement in [pair for value in marks["run with"] for pair in value.split(";")]:
            old, new = (side.strip() for side in replacement.split("=>"))
            assert old in code, f"{page}: 'run with' replaces {old!r}, which the block does not contain"
            code = code.replace(old, new)
        line = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(match["language"], code, line, "; ".join(marks["not run"]), tuple(marks["prints"])))
        end = match.end()
    return blocks
