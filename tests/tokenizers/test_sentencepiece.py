"""SentencePiece tokenizers: training, special ids, unusual characters."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from kd_jax.errors import KdError
from kd_jax.sources.toy import Toy
from kd_jax.tokenizers.base import digest
from kd_jax.tokenizers.sentencepiece import (
    EOS,
    LONG_TEXT,
    MODEL,
    PAD,
    PART_LENGTH,
    START,
    UNKNOWN,
    SentencePiece,
    split_long,
)
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


def test_parts_of_a_long_text_are_the_text():
    """Short texts are as they are; a long one is cut after spaces, or after PART_LENGTH letters without one."""
    texts = ["a" * LONG_TEXT, "word " * 4096, "a" * 20_000, "", "é" * (LONG_TEXT + 1)]
    parts = [list(split_long([text])) for text in texts]
    assert ["".join(part) for part in parts] == texts
    assert len(parts[0]) == 1 and all(part.endswith(" ") for part in parts[1])
    assert [len(part) for part in parts[2]] == [PART_LENGTH] * 9 + [20_000 - 9 * PART_LENGTH]


def test_an_error_of_the_texts_is_raised_as_it_is(tmp_path):
    def texts():
        yield from TEXTS
        raise KdError("train.jsonl, line 7: expected text")

    with pytest.raises(KdError, match=r"^train\.jsonl, line 7: expected text$"):
        SentencePiece(60).prepare(texts(), tmp_path)


def test_ctrl_c_is_taken_while_sentencepiece_trains(tmp_path):
    """SIGINT during a training of several seconds, one call of C++, raises at once."""
    text = "".join(np.random.default_rng(0).choice([*"abcdefghij"], 600_000))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist ignores the signal
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        SentencePiece(60).prepare([text], tmp_path)
    signal.signal(signal.SIGINT, before)
    assert 0.9 < time.perf_counter() - start < 3 and not list(tmp_path.iterdir())
