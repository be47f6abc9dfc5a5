"""Write the tables of commands and options from their dataclasses, for docs/reference/cli.md. conf.py runs it."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from pathlib import Path

from kd_jax.cli.commands import COMMANDS

PAGE = Path(__file__).parent / "reference/generated/commands.md"
POSITIONAL = ("config", "files")


def field_docs(kind):
    """Return field -> the docstring below it, for one dataclass without its bases."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    docs = {}
    for node, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            docs[node.target.id] = below.value.value
    return docs


def options(kind):
    """Yield (option with its value, default, help) of a command, then those of its groups of options."""
    hints = typing.get_type_hints(kind, include_extras=True)
    docs = {name: text for base in reversed(kind.__mro__[:-1]) for name, text in field_docs(base).items()}
    groups = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default):
            groups.append(type(field.default))
            continue
        hint, *settings = (hints[field.name], *getattr(hints[field.name], "__metadata__", ()))
        plain = typing.get_args(hint)[0] if settings else hint
        metavar = next((one.metavar for one in settings if getattr(one, "metavar", None)), None)
        text = next((one.help for one in settings if getattr(one, "help", None)), None) or docs[field.name]
        if typing.get_origin(plain) is typing.Literal:
            metavar = " or ".join(typing.get_args(plain))
        elif plain is bool:
            metavar = ""
        option = metavar if field.name in POSITIONAL else f"--{field.name.replace('_', '-')} {metavar or ''}"
        if metavar is None:
            option += plain.__name__.upper()
        yield option.strip(), default(field), " ".join(text.split())
    for group in groups:
        yield from options(group)


def default(field):
    """Return a field's default as a user writes it; "" for an empty one."""
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default in ("", None, ()) or field.default is False:
        return ""
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def section(name, kind):
    """Return the section of one command."""
    rows = [[f"`{option}`", start, text] for option, start, text in options(kind)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    overrides = ["Fields of the experiment can be replaced.", ""] if kind.takes_overrides else []
    words = [f"## {name}", "", inspect.getdoc(kind), "", *overrides]
    return "\n".join([*words, "| option | default | meaning |", "| --- | --- | --- |", *lines, ""])


def main():
    """Write the page, unless it is up to date."""
    text = "\n".join(section(name, kind) for name, kind in COMMANDS.items())
    PAGE.parent.mkdir(exist_ok=True)
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
