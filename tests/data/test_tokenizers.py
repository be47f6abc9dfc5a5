"""The tokeniser: its training text alone decides it."""

import pytest

from kd_jax.data.sources import Toy
from kd_jax.data.tokenizers import EOS, PAD, START, SentencePiece, Tokenizer
from kd_jax.errors import KdError

TEXTS = [text for row in Toy(100).splits(("en", "fr"))["train"] for text in row.values()]


def test_round_trip_and_special_ids(tmp_path):
    SentencePiece(vocab_size=60).train(TEXTS, tmp_path / "m")
    tokenizer = Tokenizer(tmp_path / "m")
    assert tokenizer.vocab_size == 60
    for text in TEXTS[:20]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {PAD, START, EOS} & set(ids)
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_the_same_text_gives_the_same_pieces_and_other_text_others(tmp_path):
    for name, texts in (("a", TEXTS), ("b", TEXTS), ("c", TEXTS[: len(TEXTS) // 2])):
        SentencePiece(vocab_size=55).train(texts, tmp_path / name)
    digests = [Tokenizer(tmp_path / name).digest() for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_what_cannot_be_is_told(tmp_path):
    with pytest.raises(KdError, match="tokenizer.vocab_size: 9000"):
        SentencePiece(vocab_size=9000).train(TEXTS, tmp_path / "m")
    with pytest.raises(KdError, match="run the phase `prepare`"):
        Tokenizer(tmp_path / "m")
