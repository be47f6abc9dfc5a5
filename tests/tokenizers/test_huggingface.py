"""HuggingFaceTokenizer: ids, chat templates, and pruning to the tokens that some texts use."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kd_jax.errors import KdError
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from tests.helpers.pretrained import CHAT, TEXTS, TOKENIZERS, write_pretrained
from tests.helpers.tokenizers import prepare_tokenizer

FAMILIES = list(TOKENIZERS)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return write_pretrained(tmp_path_factory.mktemp("model"), request.param, chat=CHAT)


def prepare(folder, path, texts=TEXTS, **options):
    return prepare_tokenizer(HuggingFaceTokenizer(str(folder), **options), path, texts)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return prepare(folder, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def pruned(folder, tmp_path_factory):
    return prepare(folder, tmp_path_factory.mktemp("cut"), TEXTS[:30], cut=True)


def test_ids_and_special_tokens_of_the_folder(folder, whole):
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    for text in TEXTS[:20]:
        ids = library.encode(text, add_special_tokens=False).ids
        assert whole.encode(text) == ids and whole.decode(ids) == text
        assert whole.encode_prompt(text) == [*ids, config["eos_token_id"]]
    assert whole.eos == config["eos_token_id"]
    assert whole.start == config.get("decoder_start_token_id", config["bos_token_id"])
    assert whole.rows_V.tolist() == list(range(whole.vocab_size)) and whole.vocab_size == library.get_vocab_size()


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20))
def test_no_text_encodes_to_a_special_token(whole, text):
    for text_with_end in (text, f"{text}</s>{text}"):
        assert whole.eos not in whole.encode(text_with_end) and whole.start not in whole.encode(text_with_end)


def test_pruned_tokenizer_encodes_its_texts_as_before(whole, pruned):
    assert pruned.vocab_size < whole.vocab_size
    for text in TEXTS[:30]:
        assert pruned.rows_V[pruned.encode(text)].tolist() == whole.encode(text)
        assert pruned.rows_V[pruned.encode_prompt(text)].tolist() == whole.encode_prompt(text)
    assert (pruned.rows_V[pruned.start], pruned.rows_V[pruned.eos]) == (whole.start, whole.eos)
    assert [whole.pieces()[row] for row in pruned.rows_V] == pruned.pieces()


def test_pruned_tokenizer_encodes_other_texts(pruned):
    for text in TEXTS[30:]:
        assert pruned.decode(pruned.encode(text)) == text


def test_chat_template_is_rendered(folder, tmp_path):
    chat = prepare(folder, tmp_path / "chat", chat=True, prefix="Say: ")
    words = [chat.pieces()[i] for i in chat.encode_prompt("a boat")]
    assert chat.pieces()[chat.start] == "<s>" and words.count("</s>") == 1 and "<s>" not in words
    assert chat.decode(chat.encode_prompt("a boat")).replace(" ", "") == "[user]Say:aboat[assistant]"
    short = chat.encode_prompt("a boat and a cart", max_tokens=2)
    assert len(short) < len(chat.encode_prompt("a boat and a cart"))


def test_export_writes_the_folder_s_files(folder, tmp_path):
    chat = prepare(folder, tmp_path / "chat", chat=True, cut=True)
    (tmp_path / "out").mkdir()
    ids = chat.export(tmp_path / "out", "decoder_only", True)
    library = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert library.encode(TEXTS[0], add_special_tokens=False).ids == chat.encode(TEXTS[0])
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHAT
    assert ids["eos_token_id"] == chat.eos == library.token_to_id("</s>")


@pytest.mark.parametrize(
    "options, damage, message",
    [
        ({}, lambda folder: (folder / "tokenizer.json").unlink(), "without tokenizer.json"),
        ({"end": "<stop>"}, None, "tokenizer.end: expected a token of .*, got '<stop>'"),
        ({"chat": True}, None, "got no chat template"),
        ({"chat": True}, "{{ messages[7].content.upper() }}", "tokenizer.chat: .*got the error"),
        ({"chat": True}, "{{ raise_exception('no user') }}", "got the error: no user"),
        ({"chat": True}, "{{ ''.__class__.__mro__[1].__subclasses__() }}", "tokenizer.chat: .*got the error"),
        (
            {"chat": True},
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "expected the token that ends an answer",
        ),
    ],
)
def test_check_raises(tmp_path, options, damage, message):
    folder = write_pretrained(tmp_path / "model", "decoder_only", chat=damage if isinstance(damage, str) else "")
    if callable(damage):
        damage(folder)
    with pytest.raises(KdError, match=message):
        HuggingFaceTokenizer(str(folder), **options).check()


def test_language_tag_must_be_a_token(folder, tmp_path):
    with pytest.raises(KdError, match="expected the token '<2de>'"):
        HuggingFaceTokenizer(str(folder)).prepare(TEXTS, tmp_path, ["<2fr>", "<2de>"])
