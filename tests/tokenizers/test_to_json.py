"""tokenizer.json gives SentencePiece's ids and texts."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.tokenizers.sentencepiece import SentencePieceTokenizer, SentencePiece
from kd_jax.tokenizers.to_json import tokenizer_json

TEXTS = (Path(__file__).parents[2] / "WORKSPACE.md").read_text(encoding="utf-8").splitlines()
KINDS = {
    "unigram": {},
    "bpe": {"model_type": "bpe"},
    "unigram_bytes": {"byte_fallback": True, "vocab_size": 500},
    "bpe_bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 500},
}
PIECES = st.sampled_from(["library", *"  s12éﬁ⁂▁\t\u2028", "image", "<2de>", "<2fr>", "  "])


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """(SentencePiece's tokeniser, the same from tokenizer.json)."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    SentencePiece(**{"vocab_size": 300} | KINDS[request.param]).prepare(TEXTS, path.parent, ("<2de>", "<2fr>"))
    return SentencePieceTokenizer(path), tokenizer_json(path, "$A </s>")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_same_ids_and_the_same_text(both, data):
    text = data.draw(st.one_of(st.text(max_size=20), st.lists(PIECES, max_size=12).map("".join)))
    ours, theirs = both
    ids = ours.encode(text)
    assert theirs.encode(text, add_special_tokens=False).ids == ids
    assert theirs.decode(ids) == ours.decode(ids)


def test_the_template_stands_around_the_text(both):
    ours, theirs = both
    assert theirs.encode("library").ids == [*ours.encode("library"), ours.eos]
    assert theirs.get_vocab_size() == ours.vocab_size
