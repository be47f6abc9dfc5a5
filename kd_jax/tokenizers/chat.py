"""Chat templates, as transformers renders them, in a process of their own with limits on time, memory and output."""

import dataclasses
import datetime
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.errors import KdError
from kd_jax.printable import printable
from kd_jax.tokenizers import chat_worker
from kd_jax.tokenizers.chat_worker import DATE

TEMPLATE = "chat_template.jinja"
MAX_BYTES = 1_000_000  # of a template
MARK = "\ue000message\ue000"  # no text has it
FIELD = "tokenizer.chat: expected a template that renders a user's message"


@dataclasses.dataclass(frozen=True)
class Chat:
    """A chat template in Jinja's language, and the special tokens that it may use: role ("bos", ...) -> token.

    Examples:
      >>> template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
      >>> chat = Chat(template + "{% if add_generation_prompt %}[assistant]{% endif %}", {"bos": "<s>"})
      >>> chat.render("Hello")
      '<s>[user]Hello[assistant]'
      >>> chat.around
      ('<s>[user]', '[assistant]')
    """

    template: str
    tokens: Mapping[str, str]

    def render(self, prompt: str, answer: str | None = None) -> str:
        """Return the chat of one user message, up to the answer's beginning or with the answer."""
        messages = [{"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        variables = {f"{role}_token": token for role, token in self.tokens.items() if role != "start"}
        variables |= {"messages": messages, "add_generation_prompt": answer is None, "tools": None, "documents": None}
        return _renderer(self.template, os.getpid()).ask(variables)["text"]

    @functools.cached_property
    def around(self) -> tuple[str, str]:
        """The text before and after a user's message."""
        before, mark, after = self.render(MARK).partition(MARK)
        if not mark:
            raise KdError(f"{FIELD}, got a chat without the message. Correct the template.")
        return before, after


def read_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """Return the template in a folder's chat_template.jinja or tokenizer_config.json."""
    path = folder / TEMPLATE
    try:
        template = path.read_text(encoding="utf-8") if path.is_file() else tokenizer_config.get("chat_template")
    except UnicodeDecodeError as error:
        raise KdError(f"{path}: expected UTF-8, got other bytes. Convert it with iconv.") from error
    if isinstance(template, list):  # several templates with names
        named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
        template = named[-1].get("template") if named else None
    if not isinstance(template, str):
        raise KdError(
            f"tokenizer.chat: expected {TEMPLATE} in {folder}, got no chat template. Add it, or set chat to False."
        )
    return template


def freeze(template: str, tokens: Mapping[str, str], now: datetime.datetime) -> str:
    """Return the template with fixed dates, and with fixed values of those special tokens that it uses.

    Args:
      template: of a folder.
      tokens: name of a variable ("eos_token", ...) -> the value to fix.
      now: the time that `strftime_now` prints, for every format that the template names.

    Examples:
      >>> day = datetime.datetime(2024, 7, 26)
      >>> frozen = freeze('Today: {{ strftime_now("%d %b %Y") }}. {{ messages[0].content }}', {}, day)
      >>> Chat(frozen, {}).render("Hello")
      'Today: 26 Jul 2024. Hello'
      >>> freeze("{{ messages[0].content }}", {"eos_token": "</s>"}, day)
      '{{ messages[0].content }}'
    """
    names = _renderer(template, os.getpid()).names
    header = [f"{{% set {name} = {json.dumps(tokens[name])} %}}" for name in names["variables"] if name in tokens]
    if DATE in names["variables"]:
        dates = json.dumps({form: now.strftime(form) for form in names["formats"]}, ensure_ascii=False)
        otherwise = f'raise_exception("{DATE}: expected a format that is written in the template")'
        header.append(f"{{% macro {DATE}(format) %}}{{{{ {dates}[format] or {otherwise} }}}}{{% endmacro %}}")
    return "".join(f"{line}\n" for line in header) + template  # `trim_blocks` removes the line ends


class _Renderer:
    """A process that renders one template.

    Attributes:
      names: "variables" -> the variables that the template uses; "formats" -> those of its dates.
    """

    def __init__(self, template: str):
        """Start the process; raise KdError if the template is not Jinja's language."""
        # A session of its own: Ctrl-C at the terminal is for the parent. The process ends when its input ends.
        command = [sys.executable, "-P", chat_worker.__file__]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._process, os.getpid())
        self.names: dict[str, list[str]] = self.ask({"template": template})

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to a request; raise KdError if the template fails or needs too much."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = b""
            except BaseException:  # an interrupt: the reply that comes later must answer no other request
                self._process.kill()
                _renderer.cache_clear()
                raise
        reply = json.loads(line) if line else {"error": self._end_of_process()}
        if "error" in reply:
            raise KdError(f"{FIELD}, got the error: {' '.join(printable(reply['error']).split())}. Correct it.")
        return reply

    def _end_of_process(self) -> str:
        """Return why the process ended; the next rendering starts another."""
        _renderer.cache_clear()
        if self._process.wait() == -signal.SIGPROF:
            return f"more than {chat_worker.SECONDS:g} s of processor time"
        return f"a process that ended with the code {self._process.returncode}"


@functools.lru_cache(maxsize=4)
def _renderer(template: str, process_id: int) -> _Renderer:
    """Return the template's process; a forked process starts its own."""
    if len(template) > MAX_BYTES:
        raise KdError(f"{FIELD}, got one of {len(template)} characters. Use one of at most {MAX_BYTES}.")
    return _Renderer(template)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a process by the end of its input, in the process that started it."""
    if os.getpid() == owner:
        process.kill()
        process.communicate()
