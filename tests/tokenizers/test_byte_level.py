"""The byte-level tokenizer: every text comes back, and its export gives the same ids in transformers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax import KdError
from kd_jax.tokenizers.byte_level import ByteLevel
from tests.helpers.tokenizers import prepare_tokenizer

TEXTS = ["two birds", "naïve café 5 €", "日本語 🙃\n\ttab", "</s> <s>", ""]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return prepare_tokenizer(ByteLevel(), tmp_path_factory.mktemp("bytes"), TEXTS)


@given(st.text())
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert [i - 4 for i in ids] == list(text.encode()) and tokenizer.decode(ids) == text
    assert tokenizer.encode_prompt(text) == [*ids, tokenizer.eos]


def test_a_prompt_is_cut_to_its_first_bytes(tokenizer):
    assert tokenizer.encode_prompt("abc", max_tokens=2) == [*tokenizer.encode("ab"), tokenizer.eos]


def test_bytes_that_are_no_text_are_shown_as_such(tokenizer):
    assert tokenizer.decode([*tokenizer.encode("a🙃")[:3], tokenizer.eos]) == "a\ufffd"


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(KdError, match=r"^text: expected Unicode without lone surrogates, got 'a"):
        tokenizer.encode("a\ud800")


def test_symbols_are_single_tokens(tmp_path):
    ByteLevel().prepare([], tmp_path, ["<fr>", "<de>"])
    tokenizer = ByteLevel().load(tmp_path)
    ids = tokenizer.encode("<de>é")
    assert ids == [261, *(4 + byte for byte in "é".encode())] and tokenizer.vocab_size == 262
    assert tokenizer.decode(ids) == "<de>é" and tokenizer.pieces()[261] == "<de>"


@pytest.mark.parametrize("family", ["encoder_decoder", "decoder_only"])
def test_transformers_reads_the_same_ids(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    ByteLevel().prepare([], tmp_path, ["<fr>"])
    tokenizer = ByteLevel().load(tmp_path)
    special = tokenizer.export(tmp_path / "out", family, prompted=True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    start = [] if family == "encoder_decoder" else [tokenizer.start]
    for text in [*TEXTS, "<fr>a"]:
        assert theirs(text).input_ids == [*start, *tokenizer.encode_prompt(text)]
        assert theirs.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (special["eos_token_id"], special["pad_token_id"])
