"""generate: one line of output for one line of input, whatever the texts hold."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.phases import generate
from kd_jax.sources.text_files import MAX_LINE
from kd_jax.tasks.base import Decoding
from tests.helpers.runs import smoke

BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


class Echo:
    """A byte-level model that answers every prompt with its text, then with every character that breaks lines."""

    decoding = Decoding(beam=1)
    suffix = "".join(BREAKS)

    def encode(self, prompt):
        return np.frombuffer(prompt.encode(), np.uint8).astype(np.int32)

    def generate_from_ids(self, prompts, decoding, batch_size):
        return {number: bytes(ids.astype(np.uint8)).decode() + self.suffix for number, ids in prompts.items()}


@pytest.fixture
def answer(root, tmp_path, monkeypatch):
    """A function of the bytes of standard input that returns the bytes of standard output."""
    experiment = smoke(root, [])
    monkeypatch.setattr(generate.LoadedModel, "from_run", lambda *_: Echo())

    def run(data: bytes, terminal: bool = False) -> bytes:
        output = io.BytesIO()
        stdout = io.TextIOWrapper(output, "utf-8", newline="")
        if terminal:
            monkeypatch.setattr(stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        monkeypatch.setattr(sys, "stdout", stdout)
        generate.run(experiment, tmp_path)
        stdout.flush()
        return output.getvalue()

    return run


def test_a_line_of_output_for_a_line_of_input(answer):
    lines = [f"prompt {i}" for i in range(150)]
    lines[3] = lines[70] = lines[149] = ""
    for ending in ("\n", "\r\n"):
        written = answer(ending.join([*lines, ""]).encode()).decode()
        assert written.count("\n") == len(written.splitlines()) == len(lines)
        escaped = "\\n\\r\\r\\n\\x0b\\x0c\\x1c\\x1d\\x1e\\x85\\u2028\\u2029"
        assert written.splitlines() == [line and line + escaped for line in lines]


def test_the_last_line_may_end_without_a_newline(answer):
    assert answer(b"a\nb").decode().count("\n") == 2 and answer(b"") == b""


def test_a_byte_order_mark_is_not_text(answer):
    assert answer("\ufeffhello\n\ufeffworld\n".encode()).decode().startswith("hello\\n")
    assert answer("\ufeffhello\n".encode()) == answer(b"hello\n")


def test_escapes_can_be_turned_back(answer):
    written = answer("naïve 漢字\n".encode()).decode().removesuffix("\n")
    assert written.startswith("naïve 漢字") and "naïve 漢字" + Echo.suffix == _unescape(written)


def _unescape(text):
    head, _, escapes = text.partition("\\")
    return head + f"\\{escapes}".encode("ascii").decode("unicode_escape")


def test_control_characters_reach_no_terminal(answer):
    assert "\x1b" in answer(b"\x1b[2J\n").decode()
    assert answer(b"\x1b[2J\n", terminal=True).decode().startswith("\\x1b[2J")


@pytest.mark.parametrize(
    "data, message",
    [
        ("a\nb\n".encode("utf-16"), "line 1: expected UTF-8 text, got UTF-16"),
        (b"\x1f\x8b\x08\x00\n", "line 1: expected UTF-8 text, got gzip"),
        (b"a\rb\rc", "line 1: expected newlines, got carriage returns alone. Convert it with tr"),
        (b"a\n\xff\n", "line 2: expected UTF-8, got other bytes"),
        (b"a\n" + b"x" * (MAX_LINE + 1), "line 2: expected at most 16,777,216 bytes, got more"),
    ],
)
def test_input_that_is_no_lines_of_text_is_refused(answer, data, message):
    with pytest.raises(KdError, match=f"^standard input, {message}"):
        answer(data)


@given(st.text())
def test_one_line_is_one_line(text):
    line = generate.one_line(text)
    assert len(line.splitlines()) <= 1
    assert line == text or len(text.splitlines()) > 1 or text.endswith(tuple(BREAKS))
