"""A tokenizer.json as our tokeniser: its ids, its chats, and itself cut to what some texts use."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kd_jax.errors import KdError
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from tests.helpers.pretrained import CHAT, TEXTS, TOKENIZERS, save
from tests.helpers.runs import kept

FAMILIES = list(TOKENIZERS)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), request.param, chat=CHAT)


def prepared(folder, path, texts=TEXTS, **options):
    return kept(HuggingFaceTokenizer(str(folder), **options), path, texts)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return prepared(folder, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def cut(folder, tmp_path_factory):
    return prepared(folder, tmp_path_factory.mktemp("cut"), TEXTS[:30], cut=True)


def test_ids_are_the_library_s_and_the_conventions_the_folder_s(folder, whole):
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
def test_no_text_spells_a_special_token(whole, text):
    for spelt in (text, f"{text}</s>{text}"):
        assert whole.eos not in whole.encode(spelt) and whole.start not in whole.encode(spelt)


def test_a_cut_tokeniser_gives_the_same_pieces_for_the_texts_it_was_cut_to(whole, cut):
    assert cut.vocab_size < whole.vocab_size
    for text in TEXTS[:30]:
        assert cut.rows_V[cut.encode(text)].tolist() == whole.encode(text)
        assert cut.rows_V[cut.encode_prompt(text)].tolist() == whole.encode_prompt(text)
    assert (cut.rows_V[cut.start], cut.rows_V[cut.eos]) == (whole.start, whole.eos)
    assert [whole.pieces()[row] for row in cut.rows_V] == cut.pieces()


def test_a_cut_tokeniser_still_reads_every_text_of_its_characters(cut):
    for text in TEXTS[30:]:
        assert cut.decode(cut.encode(text)) == text


def test_a_chat_is_rendered_as_the_template_says_and_begins_with_the_start(folder, tmp_path):
    chat = prepared(folder, tmp_path / "chat", chat=True, prefix="Say: ")
    words = [chat.pieces()[i] for i in chat.encode_prompt("a boat")]
    assert chat.pieces()[chat.start] == "<s>" and words.count("</s>") == 1 and "<s>" not in words
    assert chat.decode(chat.encode_prompt("a boat")).replace(" ", "") == "[user]Say:aboat[assistant]"
    short = chat.encode_prompt("a boat and a cart", most=2)
    assert len(short) < len(chat.encode_prompt("a boat and a cart"))


def test_transformers_files_come_along(folder, tmp_path):
    chat = prepared(folder, tmp_path / "chat", chat=True, cut=True)
    (tmp_path / "out").mkdir()
    ids = chat.export(tmp_path / "out", "decoder_only", True)
    library = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert library.encode(TEXTS[0], add_special_tokens=False).ids == chat.encode(TEXTS[0])
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHAT
    assert ids["eos_token_id"] == chat.eos == library.token_to_id("</s>")


@pytest.mark.parametrize(
    "options, damage, message",
    [
        ({}, lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        ({"end": "<stop>"}, None, "tokenizer.end: '<stop>' is no token"),
        ({"chat": True}, None, "has no chat template"),
        ({"chat": True}, "{{ messages[7].content.upper() }}", "the chat template fails"),
        ({"chat": True}, "{{ raise_exception('no user') }}", "fails .no user."),
        ({"chat": True}, "{{ ''.__class__.__mro__[1].__subclasses__() }}", "the chat template fails"),
        ({"chat": True}, "{% for m in messages %}{{ m.content }}{% endfor %}", "does not end an answer"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, options, damage, message):
    folder = save(tmp_path / "model", "decoder_only", chat=damage if isinstance(damage, str) else "")
    if callable(damage):
        damage(folder)
    with pytest.raises(KdError, match=message):
        HuggingFaceTokenizer(str(folder), **options).check()


def test_a_language_tag_that_is_no_token_is_told(folder, tmp_path):
    with pytest.raises(KdError, match="has no token '<2de>'"):
        HuggingFaceTokenizer(str(folder)).prepare(TEXTS, tmp_path, ["<2fr>", "<2de>"])
