"""Lines of text files: line ends, separators, and empty texts."""

import json
import re

import pytest

from kd_jax.errors import KdError
from kd_jax.sources.text_files import Lines, read_files
from kd_jax.tokenizers.sentencepiece import SentencePiece
from tests.helpers.sources import write

FIELDS = ("en", "fr")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r", "\x00"])
def test_separators_in_a_text_are_characters(tmp_path, separator):
    texts = [f"a{separator}b", "c"]
    plain = write(tmp_path / "t.txt", "\n".join(texts))
    lines = write(
        tmp_path / "t.jsonl", "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    )
    for path in (plain, lines):
        assert read_files((path,), ("text",), "source.train") == [{"text": text} for text in texts]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_mark_are_removed(tmp_path, ending, last, mark):
    text = mark + ending.join(["one", "\ufefftwo", "three"]) + ending * last
    lines = Lines(write(tmp_path / "t", text))
    assert lines.read(range(len(lines))) == ["one", "\ufefftwo", "three"]
    row = mark + json.dumps({"en": "a", "fr": "b"}) + ending * last
    assert read_files((write(tmp_path / "t.jsonl", row),), FIELDS, "source.train") == [{"en": "a", "fr": "b"}]


@pytest.mark.parametrize("text", ["", " ", "\u200b", "\ufeff \u200e", "\u2028\x0c", "\x01\x7f"])
def test_empty_text_raises_with_file_and_line(tmp_path, text):
    settings = SentencePiece(vocab_size=8, model_type="bpe")
    settings.prepare(["ab ba", "ba ab"], tmp_path)
    assert not settings.load(tmp_path).encode(text)
    plain = write(tmp_path / "t.txt", f"a\n{text}\nb\n")
    lines = write(tmp_path / "t.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in ("a", text, "b")))
    for path in (plain, lines):
        with pytest.raises(KdError, match=f"^{re.escape(path)}, line 2.*: expected text, got an empty one"):
            list(read_files((path,), ("text",), "source.train"))
