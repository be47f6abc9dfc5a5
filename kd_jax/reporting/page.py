"""A report as Markdown, and as one HTML page that needs nothing else: whatever the data says, it stays text."""

import difflib
import html as escaping
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

Sample = Mapping[str, str]
NOTHING = "–"


class Block(Protocol):
    """A part of a section, from plain text to markup."""

    def html(self) -> str:
        """As HTML."""
        ...

    def markdown(self) -> list[str]:
        """As lines of Markdown, [] where it has no place there."""
        ...


class Document(NamedTuple):
    """What a report says, before it is Markdown or HTML; all of it plain text, the plots apart.

    Attributes:
      title, lead: the experiment, and its outcome in a paragraph.
      warnings: what a reader must know before believing the figures.
      sections: heading -> blocks, in order; the heading "" is not shown.
      versions: library -> version.
      resolved: the experiment, every field.
    """

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

    def html(self) -> str:
        """A table that scrolls inside its own box."""
        esc = escaping.escape
        head, *body = self.rows
        headings = "".join(f'<th scope="col">{esc(cell)}</th>' for cell in head)
        rows = "".join(
            f'<tr><th scope="row">{esc(name)}</th>' + "".join(f"<td>{esc(cell)}</td>" for cell in cells) + "</tr>"
            for name, *cells in body
        )
        return f'<div class="scroll"><table><thead><tr>{headings}</tr></thead><tbody>{rows}</tbody></table></div>'

    def markdown(self) -> list[str]:
        """The first column to the left, the others to the right."""
        head, *body = [[escape_markdown(cell) for cell in row] for row in self.rows]
        ruled = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        return [*("| " + " | ".join(row) + " |" for row in ruled), ""]


class Notes(NamedTuple):
    """Paragraphs in small print."""

    paragraphs: Sequence[str]

    def html(self) -> str:
        """One paragraph each."""
        return '<div class="note">' + "".join(f"<p>{escaping.escape(one)}</p>" for one in self.paragraphs) + "</div>"

    def markdown(self) -> list[str]:
        """The same."""
        return [line for one in self.paragraphs for line in (escape_markdown(one), "")]


class Plots(NamedTuple):
    """Caption -> SVG element, the only markup taken as it is; for HTML alone."""

    captioned: Mapping[str, str]

    def html(self) -> str:
        """Side by side where there is room."""
        figures = (
            f"<figure><figcaption>{escaping.escape(caption)}</figcaption>{svg}</figure>"
            for caption, svg in self.captioned.items()
        )
        return f'<div class="plots">{"".join(figures)}</div>'

    def markdown(self) -> list[str]:
        """Nothing."""
        return []


class Samples(NamedTuple):
    """Texts side by side.

    Attributes:
      samples: "source", "reference" or other fields -> text, and a text for each model.
      models: names, the teacher first: where the others differ from its text is marked.
    """

    samples: Sequence[Sample]
    models: Sequence[str]

    def html(self) -> str:
        """A list for each example."""
        shown = [_marked(one, self.models, escaping.escape, "<mark>{}</mark>") for one in self.samples]
        lists = ("".join(f"<dt>{escaping.escape(k)}</dt><dd>{text}</dd>" for k, text in one.items()) for one in shown)
        return '<p class="note">Marked: words that the teacher did not write.</p>' + "".join(
            f"<dl>{rows}</dl>" for rows in lists
        )

    def markdown(self) -> list[str]:
        """A numbered heading and a list for each example."""
        lines = ["Bold: words that the teacher did not write.", ""]
        for number, sample in enumerate(self.samples, 1):
            shown = _marked(sample, self.models, escape_markdown, "**{}**")
            rows = (f"- {escape_markdown(name)}: {words}" for name, words in shown.items())
            lines += [f"### {number}", "", *rows, ""]
        return lines


def runs_beside(text: str, other: str) -> list[tuple[str, bool]]:
    """The text's words in runs, each with whether it departs from the other text (the longest common runs stay).

    Args:
      text, other: words set apart by white space.

    Examples:
      >>> runs_beside("a red cat sat", "a black cat sat")
      [('a', False), ('red', True), ('cat sat', False)]
    """
    words, wanted = text.split(), other.split()
    matcher = difflib.SequenceMatcher(None, wanted, words, autojunk=False)
    return [
        (" ".join(words[start:stop]), tag != "equal")
        for tag, _, _, start, stop in matcher.get_opcodes()
        if stop > start
    ]


def escape_markdown(text: str) -> str:
    """The text on one line, as CommonMark and GitHub show it literally: no markup, no HTML, no table cell's end.

    Examples:
      >>> escape_markdown("a|b <i>*c*</i>")
      'a\\\\|b &lt;i&gt;\\\\*c\\\\*&lt;/i&gt;'
    """
    line = escaping.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#$!])", r"\\\1", line)


def markdown(document: Document) -> str:
    """The report as Markdown."""
    lines = [f"# {escape_markdown(document.title)}", "", escape_markdown(document.lead), ""]
    lines += [line for one in document.warnings for line in (f"> **Warning**: {escape_markdown(one)}", "")]
    for heading, blocks in document.sections.items():
        body = [line for block in blocks for line in block.markdown()]
        if heading and body:
            lines += [f"## {escape_markdown(heading)}", ""]
        lines += body
    return "\n".join(lines)


def html(document: Document) -> str:
    """The report as one self-contained page, without scripts."""
    esc = escaping.escape
    sections = (
        (f"<h2>{esc(heading)}</h2>" if heading else "") + "".join(block.html() for block in blocks)
        for heading, blocks in document.sections.items()
    )
    return PAGE.format(
        title=esc(document.title),
        lead=esc(document.lead),
        warnings="".join(f'<p class="warning">{esc(warning)}</p>' for warning in document.warnings),
        sections="\n".join(sections),
        versions=esc(", ".join(f"{name} {version}" for name, version in document.versions.items())),
        resolved=esc(document.resolved),
    )


def _marked(sample: Sample, models: Sequence[str], escape: Callable[[str], str], mark: str) -> dict[str, str]:
    """Field or model -> its escaped text, a student's words marked where the teacher's text lacks them."""
    teacher, *students = models
    shown = {}
    for name, text in sample.items():
        if name in students:
            runs = runs_beside(text, sample[teacher])
            shown[name] = " ".join(mark.format(escape(run)) if departs else escape(run) for run, departs in runs)
        else:
            shown[name] = escape(text)
    return {name: text or NOTHING for name, text in shown.items()}


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --ground: #fff; --ink: #1e293b; --soft: #64748b; --line: #e2e8f0;
  --mark: #fde68a; --warn: #b45309; --warn-ground: #fffbeb; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ground: #0f172a; --ink: #e2e8f0; --soft: #94a3b8; --line: #334155;
  --mark: #854d0e; --warn: #fbbf24; --warn-ground: #292012; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 68rem; margin: 2.5rem auto; padding: 0 1.2rem;
  color: var(--ink); background: var(--ground); overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; margin-bottom: .4rem; }} h2 {{ font-size: 1.15rem; margin: 2.4rem 0 .6rem; }}
.lead {{ font-size: 1.12rem; max-width: 52rem; }}
.note, footer {{ color: var(--soft); font-size: .85rem; max-width: 60rem; }} .note p {{ margin: .4rem 0; }}
.warning {{ max-width: 52rem; margin: .4rem 0; padding: .4rem .8rem; color: var(--warn);
  background: var(--warn-ground); border-left: 4px solid; }}
.scroll {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; overflow-wrap: normal; }}
td, tbody th {{ white-space: nowrap; }} tbody th {{ font-weight: 500; }}
thead th {{ font-weight: 600; color: var(--soft); vertical-align: bottom; }} th:first-child {{ text-align: left; }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1.5rem; }}
figure {{ margin: 0; flex: 0 1 32rem; min-width: min(100%, 24rem); }}
figcaption {{ font-weight: 600; font-size: .95rem; }} svg {{ width: 100%; height: auto; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; padding: .8rem 0;
  border-bottom: 1px solid var(--line); font-size: .92rem; }}
dt {{ color: var(--soft); }} dd {{ margin: 0; }} mark {{ background: var(--mark); color: inherit; padding: 0 .15em; }}
pre {{ overflow-x: auto; font-size: .78rem; overflow-wrap: normal; }}
@media (max-width: 40rem) {{ body {{ margin: 1rem auto; }} dl {{ grid-template-columns: 1fr; }}
  dd {{ margin-bottom: .4rem; }} }}
</style></head><body>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{warnings}
{sections}
<h2>Experiment</h2><details><summary>every field, resolved</summary><pre>{resolved}</pre></details>
<footer><p>{versions}</p></footer>
</body></html>
"""
