"""The tokeniser: its training text alone decides it."""

import pytest

from kd_jax.errors import KdError
from kd_jax.sources.toy import Toy
from kd_jax.tokenizers.base import digest
from kd_jax.tokenizers.sentencepiece import EOS, MODEL, PAD, START, UNKNOWN, SentencePiece

TEXTS = [text for row in Toy(100).splits(("en", "fr"))["train"] for text in row.values()]


def trained(folder, texts=TEXTS, **settings):
    """The tokeniser of these texts."""
    folder.mkdir(exist_ok=True)
    SentencePiece(**settings).prepare(texts, folder)
    return SentencePiece(**settings).load(folder)


def test_round_trip_and_special_ids(tmp_path):
    tokenizer = trained(tmp_path, vocab_size=60)
    assert tokenizer.vocab_size == 60
    for text in TEXTS[:20]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {PAD, START, EOS} & set(ids)
        assert tokenizer.encode_prompt(text) == [*ids, EOS] and tokenizer.encode_prompt(text, 2) == [*ids[:2], EOS]
    assert list(tmp_path.iterdir()) == [tmp_path / MODEL]


def test_the_same_text_gives_the_same_pieces_and_other_text_others(tmp_path):
    texts = {"a": TEXTS, "b": TEXTS, "c": TEXTS[: len(TEXTS) // 2]}
    digests = [digest(trained(tmp_path / name, texts[name], vocab_size=55)) for name in texts]
    assert digests[0] == digests[1] != digests[2]


def test_what_cannot_be_is_told(tmp_path):
    with pytest.raises(KdError, match="tokenizer.vocab_size: 9000"):
        trained(tmp_path, vocab_size=9000)
    with pytest.raises(KdError, match="run the phase `prepare`"):
        SentencePiece().load(tmp_path)


SEPARATORS = ("\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\r", "\n", "\x00", "\u2585", "\ufffd", "\ufeff")


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_separators_and_controls_survive_and_lose_no_example(tmp_path, model_type):
    odd = [f"two{separator}boats" for separator in SEPARATORS]
    tokenizer = trained(tmp_path, [*TEXTS, *odd, *SEPARATORS], vocab_size=60, model_type=model_type)
    for text in odd:
        written = tokenizer.decode(tokenizer.encode(text))
        assert written.startswith("two") and written.endswith("boats")
    assert UNKNOWN in tokenizer.encode("two\x00boats")


def test_a_long_document_counts_in_the_training(tmp_path):
    document = " ".join(TEXTS * 5)
    assert len(document) > 4192
    assert UNKNOWN not in trained(tmp_path, [document, "zz zz zz"], vocab_size=50).encode(TEXTS[0])
