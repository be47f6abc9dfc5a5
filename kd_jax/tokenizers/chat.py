"""Chat templates, rendered in a sandbox: a template from a downloaded folder cannot execute code."""

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kd_jax.errors import KdError

TEMPLATE = "chat_template.jinja"


@dataclasses.dataclass(frozen=True)
class Chat:
    """A chat template in Jinja's language, and the special tokens that it may use: role ("bos", ...) -> token.

    Examples:
      >>> template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
      >>> chat = Chat(template + "{% if add_generation_prompt %}[assistant]{% endif %}", {"bos": "<s>"})
      >>> chat.render("Hello")
      '<s>[user]Hello[assistant]'
    """

    template: str
    tokens: Mapping[str, str]

    @classmethod
    def from_folder(cls, folder: Path, tokenizer_config: Mapping[str, Any], tokens: Mapping[str, str]) -> "Chat":
        """Return the template in a folder's chat_template.jinja or tokenizer_config.json."""
        path = folder / TEMPLATE
        template = path.read_text(encoding="utf-8") if path.exists() else tokenizer_config.get("chat_template")
        if isinstance(template, list):  # several templates with names
            template = {named["name"]: named["template"] for named in template}.get("default")
        if not isinstance(template, str):
            raise KdError(
                f"tokenizer.chat: expected {TEMPLATE} in {folder}, got no chat template. Add it, or set chat to False."
            )
        return cls(template, tokens)

    def render(self, prompt: str, answer: str | None = None) -> str:
        """Return the chat of one user message, up to the answer's beginning or with the answer."""
        messages = [{"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        tokens = {f"{role}_token": token for role, token in self.tokens.items() if role != "start"}
        # The filters and functions that templates of the Hugging Face hub use.
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        sandbox.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        sandbox.globals["raise_exception"] = _raise_exception
        try:
            template = sandbox.from_string(self.template)
            return template.render(messages=messages, add_generation_prompt=answer is None, **tokens)
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError, ArithmeticError, LookupError) as error:
            raise KdError(
                f"tokenizer.chat: expected a template that renders a user message, got the error: {error}. Correct it."
            ) from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
