"""SentencePiece tokenizers: training, special ids, unusual characters."""

import pytest

from kd_jax.errors import KdError
from kd_jax.sources.toy import Toy
from kd_jax.tokenizers.base import digest
from kd_jax.tokenizers.sentencepiece import EOS, MODEL, PAD, START, UNKNOWN, SentencePiece
from tests.helpers.tokenizers import prepare_tokenizer

TEXTS = [text for row in Toy(100).splits(("en", "fr"))["train"] for text in row.values()]


def train(folder, texts=TEXTS, **settings):
    """Return a tokenizer trained on these texts."""
    return prepare_tokenizer(SentencePiece(**settings), folder, texts)


def test_round_trip_and_special_ids(tmp_path):
    tokenizer = train(tmp_path, vocab_size=60)
    assert tokenizer.vocab_size == 60
    for text in TEXTS[:20]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {PAD, START, EOS} & set(ids)
        assert tokenizer.encode_prompt(text) == [*ids, EOS] and tokenizer.encode_prompt(text, 2) == [*ids[:2], EOS]
    assert list(tmp_path.iterdir()) == [tmp_path / MODEL]


def test_training_text_decides_the_pieces(tmp_path):
    texts = {"a": TEXTS, "b": TEXTS, "c": TEXTS[: len(TEXTS) // 2]}
    digests = [digest(train(tmp_path / name, texts[name], vocab_size=55)) for name in texts]
    assert digests[0] == digests[1] != digests[2]


def test_invalid_vocab_size_and_missing_files(tmp_path):
    with pytest.raises(KdError, match="tokenizer.vocab_size: expected a size that suits the training text, got 9000"):
        train(tmp_path, vocab_size=9000)
    with pytest.raises(KdError, match="Run the phase `prepare`"):
        SentencePiece().load(tmp_path)


SEPARATORS = ("\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\r", "\n", "\x00", "\u2585", "\ufffd", "\ufeff")


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_separators_and_controls_round_trip(tmp_path, model_type):
    unusual = [f"two{separator}boats" for separator in SEPARATORS]
    tokenizer = train(tmp_path, [*TEXTS, *unusual, *SEPARATORS], vocab_size=60, model_type=model_type)
    for text in unusual:
        decoded = tokenizer.decode(tokenizer.encode(text))
        assert decoded.startswith("two") and decoded.endswith("boats")
    assert UNKNOWN in tokenizer.encode("two\x00boats")


def test_long_documents_are_trained_on(tmp_path):
    document = " ".join(TEXTS * 5)
    assert len(document) > 4192
    assert UNKNOWN not in train(tmp_path, [document, "zz zz zz"], vocab_size=50).encode(TEXTS[0])
