"""The tokeniser: its training text alone decides it."""

import pytest

from kd_jax.data.sources import Toy
from kd_jax.data.tokenizers import EOS, PAD, START, UNKNOWN, SentencePiece, Tokenizer
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


SEPARATORS = ("\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\r", "\n", "\x00", "\u2585", "\ufffd", "\ufeff")


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_separators_and_controls_survive_and_lose_no_example(tmp_path, model_type):
    odd = [f"two{separator}boats" for separator in SEPARATORS]
    SentencePiece(vocab_size=60, model_type=model_type).train([*TEXTS, *odd, *SEPARATORS], tmp_path / "m")
    tokenizer = Tokenizer(tmp_path / "m")
    for text in odd:
        written = tokenizer.decode(tokenizer.encode(text))
        assert written.startswith("two") and written.endswith("boats")
    assert UNKNOWN in tokenizer.encode("two\x00boats")


def test_a_long_document_counts_in_the_training(tmp_path):
    document = " ".join(TEXTS * 5)
    assert len(document) > 4192
    SentencePiece(vocab_size=50).train([document, "zz zz zz"], tmp_path / "m")
    assert UNKNOWN not in Tokenizer(tmp_path / "m").encode(TEXTS[0])
