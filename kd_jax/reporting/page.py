"""A report as Markdown and as one self-contained HTML page; all data is escaped."""

import difflib
import html as html_escapes
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jinja2

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.printable import printable

Sample = Mapping[str, str]
Runs = list[tuple[str, bool]]  # (text, whether it departs from the first model's)
EMPTY = "–"
MAX_SHOWN = 240  # characters of a text that a student wrote while it trained


class Block(Protocol):
    """A part of a section, as plain text."""

    @property
    def kind(self) -> str:
        """Name of the template's macro that renders the block."""
        ...

    def markdown(self) -> list[str]:
        """Return lines of Markdown; [] for a block that only HTML shows."""
        ...


class Document(NamedTuple):
    """The content of a report, as plain text but for the plots; the heading "" of a section is not shown."""

    title: str
    lead: str
    warnings: Sequence[str]
    sections: Mapping[str, Sequence[Block]]
    versions: Mapping[str, str]
    resolved: str


class Table(NamedTuple):
    """Rows of cells, the heading row first.

    Examples:
      >>> Table([["model", "BLEU"], ["teacher", "22.4"]]).markdown()
      ['| model | BLEU |', '| --- | ---: |', '| teacher | 22.4 |', '']
    """

    rows: Sequence[Sequence[str]]
    kind = "table"

    def markdown(self) -> list[str]:
        """Return a table with the first column to the left and the others to the right."""
        head, *body = [[escape_markdown(cell) for cell in row] for row in self.rows]
        rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        return [*("| " + " | ".join(row) + " |" for row in rows), ""]


class Paragraphs(NamedTuple):
    """Paragraphs in the page's print."""

    paragraphs: Sequence[str]
    kind = "paragraphs"

    def markdown(self) -> list[str]:
        """Return the paragraphs, separated by empty lines."""
        return [line for paragraph in self.paragraphs for line in (escape_markdown(paragraph), "")]


class Notes(NamedTuple):
    """Paragraphs in small print."""

    paragraphs: Sequence[str]
    kind = "notes"

    def markdown(self) -> list[str]:
        """Return the paragraphs, separated by empty lines."""
        return Paragraphs(self.paragraphs).markdown()


class Plots(NamedTuple):
    """Caption -> SVG element, which is not escaped; for HTML only."""

    captioned: Mapping[str, str]
    kind = "plots"

    def markdown(self) -> list[str]:
        """Return no lines."""
        return []


class Samples(NamedTuple):
    """Texts side by side: "source", "reference" and each model's name -> text.

    The teacher, or another model in its place, comes first in `models`; what the others write otherwise is marked.
    """

    samples: Sequence[Sample]
    models: Sequence[str]
    kind = "samples"

    @property
    def marks(self) -> str:
        """What is marked."""
        first = "the teacher" if self.models[0] == TEACHER else self.models[0]
        return f"words that {first} did not write."

    def marked(self) -> list[dict[str, Runs]]:
        """Return name -> runs of text for each sample."""
        teacher, *students = self.models
        marked = []
        for sample in self.samples:
            runs = {
                name: runs_beside(text, sample[teacher]) if name in students else [(text, False)]
                for name, text in sample.items()
            }
            marked.append({name: of_text if sample[name] else [(EMPTY, False)] for name, of_text in runs.items()})
        return marked

    def markdown(self) -> list[str]:
        """Return a numbered heading and a list for each example."""
        lines = [escape_markdown(f"Bold: {self.marks}"), ""]
        for number, sample in enumerate(self.marked(), 1):
            lines += [f"### {number}", ""]
            for name, runs in sample.items():
                words = [f"**{escape_markdown(run)}**" if departs else escape_markdown(run) for run, departs in runs]
                lines.append(f"- {escape_markdown(name)}: {' '.join(words)}")
            lines.append("")
        return lines


class OwnText(NamedTuple):
    """A text that a student wrote while it trained.

    Attributes:
      prompt: what it continues.
      text: without its end token.
      ended: whether it has one.
    """

    prompt: str
    text: str
    ended: bool


class OwnTexts(NamedTuple):
    """Texts that students wrote while they trained: heading -> some of them.

    Examples:
      >>> OwnTexts({"kd, step 1": [OwnText("a cat", "un chat chat", ended=False)]}).markdown()[2:]
      ['### kd, step 1', '', '- prompt: a cat', '- text: un chat chat (no end)', '']
    """

    texts: Mapping[str, Sequence[OwnText]]
    kind = "own_texts"

    @property
    def note(self) -> str:
        """What the texts are."""
        return (
            "The first texts are of the beginning of a student's training, the others of its end. (no end): the text "
            "reached its maximum length."
        )

    def shown(self) -> dict[str, list[tuple[str, str]]]:
        """Return heading -> (prompt, text) of each text, of bounded length."""
        return {
            heading: [(shorten(one.prompt) or EMPTY, _with_end(one)) for one in texts]
            for heading, texts in self.texts.items()
        }

    def markdown(self) -> list[str]:
        """Return a heading for each file of texts, and a list for each text."""
        lines = [escape_markdown(self.note), ""]
        for heading, texts in self.shown().items():
            lines += [f"### {escape_markdown(heading)}", ""]
            for prompt, text in texts:
                lines += [f"- prompt: {escape_markdown(prompt)}", f"- text: {escape_markdown(text)}", ""]
        return lines


def _with_end(one: OwnText) -> str:
    return (shorten(one.text) or EMPTY) + ("" if one.ended else " (no end)")


def shorten(text: str) -> str:
    """Return a text of at most MAX_SHOWN characters, the last one an ellipsis if more follow.

    Examples:
      >>> shorten("ab"), len(shorten("ab" * 1000)), shorten("ab" * 1000)[-3:]
      ('ab', 240, 'ba…')
    """
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def runs_beside(text: str, other: str) -> Runs:
    """Split a text into runs of words, each with whether it departs from the other text.

    Examples:
      >>> runs_beside("a red cat sat", "a black cat sat")
      [('a', False), ('red', True), ('cat sat', False)]
    """
    words = text.split()
    matcher = difflib.SequenceMatcher(None, other.split(), words, autojunk=False)
    return [
        (" ".join(words[start:stop]), tag != "equal")
        for tag, _, _, start, stop in matcher.get_opcodes()
        if stop > start
    ]


def escape_markdown(text: str) -> str:
    r"""Return the text on one line so that CommonMark and GitHub show it literally, also in a table's cell.

    Examples:
      >>> escape_markdown("a|b <i>*c*</i>")
      'a\\|b &lt;i&gt;\\*c\\*&lt;/i&gt;'
    """
    line = html_escapes.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#$!])", r"\\\1", line)


def code_block(text: str, language: str = "") -> str:
    """Return a fenced block of code, which no backticks in the text end."""
    fence = _longer_fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def code_span(text: str) -> str:
    r"""Return one line as code within a paragraph.

    Examples:
      >>> code_span("a `b`")
      '`` a `b` ``'
    """
    fence, line = _longer_fence(text, 1), " ".join(text.split())
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def _longer_fence(text: str, least: int) -> str:
    """Return a run of at least `least` backticks that is longer than every run in the text."""
    return "`" * max(least, *(len(run) + 1 for run in re.findall("`+", text)), 0)


def markdown(document: Document) -> str:
    """Render the report as Markdown."""
    lines = [f"# {escape_markdown(document.title)}", "", escape_markdown(document.lead), ""]
    lines += [line for warning in document.warnings for line in (f"> **Warning**: {escape_markdown(warning)}", "")]
    for heading, blocks in document.sections.items():
        body = [line for block in blocks for line in block.markdown()]
        if heading and body:
            lines += [f"## {escape_markdown(heading)}", ""]
        lines += body
    return printable("\n".join(lines))


def html(document: Document) -> str:
    """Render the report as one self-contained page without scripts."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kd_jax.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return printable(environment.get_template("report.html.j2").render(document=document))
