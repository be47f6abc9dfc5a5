"""Chat templates, run in a sandbox: a folder that somebody handed over executes nothing here."""

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


@dataclasses.dataclass(frozen=True)
class Chat:
    """A chat template, and the special tokens that it may name.

    Attributes:
      template: its text, in Jinja's language.
      tokens: "bos", "eos", ... -> the token.

    Examples:
      >>> template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
      >>> chat = Chat(template + "{% if add_generation_prompt %}[assistant]{% endif %}", {"bos": "<s>"})
      >>> chat.render("Hello")
      '<s>[user]Hello[assistant]'
    """

    template: str
    tokens: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, settings: Mapping[str, Any], tokens: Mapping[str, str]) -> "Chat":
        """The template of a folder, in a file of its own or in tokenizer_config.json.

        Raises:
          KdError: if there is none.
        """
        path = folder / "chat_template.jinja"
        template = path.read_text(encoding="utf-8") if path.exists() else settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = {one["name"]: one["template"] for one in template}.get("default")
        if not isinstance(template, str):
            raise KdError(f"tokenizer.chat: {folder} has no chat template; wanted chat_template.jinja, or chat=False")
        return cls(template, tokens)

    def render(self, asked: str, answered: str | None = None) -> str:
        """One user's message, up to where the answer begins, or with the answer.

        Raises:
          KdError: if the template cannot be run.
        """
        messages = [{"role": "user", "content": asked}]
        if answered is not None:
            messages.append({"role": "assistant", "content": answered})
        known = {f"{name}_token": token for name, token in self.tokens.items() if name != "start"}
        try:
            template = _environment().from_string(self.template)
            return template.render(messages=messages, add_generation_prompt=answered is None, **known)
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError, ArithmeticError, LookupError) as error:
            raise KdError(f"tokenizer.chat: the chat template fails ({error}); mend it, or take chat=False") from error


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates of Hugging Face's hub expect."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _today}
    return environment


def _today(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
