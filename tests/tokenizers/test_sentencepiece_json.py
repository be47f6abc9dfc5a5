"""A tokenizer.json gives the ids and texts of its SentencePiece model."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.tokenizers.sentencepiece import SentencePiece, SentencePieceTokenizer
from kd_jax.tokenizers.sentencepiece_json import to_tokenizer_json

TEXTS = (Path(__file__).parents[2] / "WORKSPACE.md").read_text(encoding="utf-8").splitlines()
KINDS = {
    "unigram": {},
    "bpe": {"model_type": "bpe"},
    "unigram_bytes": {"byte_fallback": True, "vocab_size": 500},
    "bpe_bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 500},
}
FRAGMENTS = st.sampled_from(["library", *"  s12éﬁ⁂▁\t\u2028", "image", "<2de>", "<2fr>", "  "])


@pytest.fixture(scope="module", params=KINDS)
def tokenizers(request, tmp_path_factory):
    """Return (the SentencePiece tokenizer, its tokenizer.json's tokenizer)."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    SentencePiece(**{"vocab_size": 300} | KINDS[request.param]).prepare(TEXTS, path.parent, ("<2de>", "<2fr>"))
    return SentencePieceTokenizer(path), to_tokenizer_json(path, "$A </s>")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_ids_and_texts_are_equal(tokenizers, data):
    text = data.draw(st.one_of(st.text(max_size=20), st.lists(FRAGMENTS, max_size=12).map("".join)))
    ours, theirs = tokenizers
    ids = ours.encode(text)
    assert theirs.encode(text, add_special_tokens=False).ids == ids
    assert theirs.decode(ids) == ours.decode(ids)


def test_template_is_applied(tokenizers):
    ours, theirs = tokenizers
    assert theirs.encode("library").ids == [*ours.encode("library"), ours.eos]
    assert theirs.get_vocab_size() == ours.vocab_size
