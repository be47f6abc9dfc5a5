"""The process that renders chat templates: a template of a stranger gets little time, memory and output.

It needs only Jinja. Requests and replies are lines of JSON: first {"template": text}, then the variables of each chat.
"""

import contextlib
import json
import resource
import signal
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

SECONDS = 1.0  # of processor time for a rendering; real templates need milliseconds
MEMORY = 512 * 2**20  # bytes of the process
CHARACTERS = 1_000_000  # of a chat, beyond ten times its messages
DATE = "strftime_now"  # the function of transformers that prints the day's date


class Generation(jinja2.ext.Extension):
    """The block {% generation %}...{% endgeneration %}, by which transformers finds answers; it prints its content."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        """Return a call with the block as its body, which has the scope of transformers' block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return caller()


def make_environment() -> jinja2.Environment:
    """Return the environment that transformers renders chat templates in."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return JSON without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    """Stop the rendering."""
    raise jinja2.TemplateError(message)


def read_names(environment: jinja2.Environment, template: str) -> dict[str, list[str]]:
    """Return the variables that a template uses, and the formats of the dates that it prints."""
    tree = environment.parse(template)
    calls = [call for call in tree.find_all(jinja2.nodes.Call) if getattr(call.node, "name", "") == DATE]
    arguments = [value for call in calls for value in (*call.args, *(keyword.value for keyword in call.kwargs))]
    formats = {value.value for value in arguments if isinstance(value, jinja2.nodes.Const)}
    return {"variables": sorted(jinja2.meta.find_undeclared_variables(tree)), "formats": sorted(map(str, formats))}


def main() -> None:
    """Answer every line of standard input; the end of the input, or of the time, ends the process."""
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    environment, template = make_environment(), jinja2.Template("")
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        reply: dict[str, Any]
        try:
            request = json.loads(line)
            if "template" in request:
                template = environment.from_string(request["template"])
                reply = read_names(environment, request["template"])
            else:
                text = template.render(request)
                too_long = len(text) > 10 * len(line) + CHARACTERS
                reply = {"error": f"a chat of {len(text)} characters"} if too_long else {"text": text}
        except MemoryError:
            reply = {"error": f"more than {MEMORY // 2**20} MB of memory"}
        except Exception as error:  # whatever the template raises
            name = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            reply = {"error": name + str(error)[:200]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
