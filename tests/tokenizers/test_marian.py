"""Two SentencePiece models and a vocab.json as one tokeniser."""

import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from kd_jax.tokenizers.marian import MarianTokenizer
from tests.helpers.runs import kept
from tests.helpers.translators import ROWS, TEXTS, marian


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return marian(tmp_path_factory.mktemp("marian"))


def prepared(folder, path, texts=TEXTS, **options):
    return kept(MarianTokenizer(str(folder), **options), path, texts)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return prepared(folder, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def cut(folder, tmp_path_factory):
    return prepared(folder, tmp_path_factory.mktemp("cut"), TEXTS[:20], cut=True)


def read_with(folder, name):
    """(the library's model, token -> id)"""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
    return model, json.loads((folder / "vocab.json").read_text())


def test_one_model_reads_and_the_other_writes(folder, whole):
    source, vocab = read_with(folder, "source.spm")
    target, _ = read_with(folder, "target.spm")
    unnumbered = 0
    for row in ROWS:
        pieces = source.encode(row["en"], out_type=str)
        unnumbered += sum(piece not in vocab for piece in pieces)
        assert whole.encode_prompt(row["en"]) == [*(vocab.get(piece, vocab["<unk>"]) for piece in pieces), vocab["</s>"]]
        assert whole.encode(row["fr"]) == [vocab[piece] for piece in target.encode(row["fr"], out_type=str)]
        assert whole.decode(whole.encode(row["fr"])) == row["fr"]
    assert unnumbered and any(whole.encode(row["en"]) != whole.encode_prompt(row["en"])[:-1] for row in ROWS)


def test_decoding_begins_with_the_pad_and_never_writes_it(whole):
    words = whole.pieces()
    assert (words[whole.start], words[whole.eos], words[whole.pad]) == ("<pad>", "</s>", "<pad>")
    assert [words[i] for i in whole.suppress_tokens] == ["<pad>"] and whole.forced_prefix == ()
    assert whole.rows_V.tolist() == list(range(len(words)))


def test_the_language_to_write_stands_in_front_of_a_source_alone(folder, whole, tmp_path):
    languaged = prepared(folder, tmp_path / "oci", target=">>oci<<")
    code = whole.pieces().index(">>oci<<")
    assert languaged.encode_prompt("one boat") == [code, *whole.encode_prompt("one boat")]
    assert whole.encode_prompt(">>oci<< one boat") == languaged.encode_prompt("one boat")
    assert languaged.encode("one boat") == whole.encode("one boat")
    assert code not in whole.encode(">>oci<< one boat") + whole.encode_prompt(">>oci< one boat") + whole.encode_prompt("a >>oci<< b")
    assert languaged.encode_prompt("one boat", most=2) == [code, *whole.encode_prompt("one boat")[:2], whole.eos]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20))
def test_no_text_spells_a_special_token(whole, text):
    for spelt in (text, f"{text}</s>{text}<pad>"):
        assert not {whole.eos, whole.start} & {*whole.encode(spelt), *whole.encode_prompt(spelt)[:-1]}


def test_a_cut_tokeniser_gives_the_same_pieces_for_the_texts_it_was_cut_to(whole, cut):
    assert cut.vocab_size < whole.vocab_size
    for text in TEXTS[:20]:
        assert cut.rows_V[cut.encode(text)].tolist() == whole.encode(text)
        assert cut.rows_V[cut.encode_prompt(text)].tolist() == whole.encode_prompt(text)
    assert (cut.rows_V[cut.start], cut.rows_V[cut.eos]) == (whole.start, whole.eos)
    assert [whole.pieces()[row] for row in cut.rows_V] == cut.pieces()


def test_a_cut_tokeniser_still_writes_every_text_of_its_characters(cut):
    for row in ROWS[20:]:
        assert cut.decode(cut.encode(row["fr"])) == row["fr"]


def test_a_language_in_use_outlives_the_cut(folder, tmp_path):
    written = prepared(folder, tmp_path / "kept", [">>fra<< one boat"], cut=True)
    assert ">>fra<<" in written.pieces() and ">>oci<<" not in written.pieces()
    assert ">>oci<<" in prepared(folder, tmp_path / "set", TEXTS[:5], cut=True, target=">>oci<<").pieces()


def test_hugging_face_s_settings_become_these_at_such_a_folder(folder):
    given = HuggingFaceTokenizer(cut=True, target=">>fra<<").with_folder(str(folder))
    assert given == MarianTokenizer(str(folder), target=">>fra<<", cut=True)
    with pytest.raises(KdError, match="tokenizer.prefix: 'say: '; .* Marian model's and has no use of it"):
        HuggingFaceTokenizer(prefix="say: ").with_folder(str(folder))


def without(name):
    return lambda folder: (folder / name).unlink()


def bilingual(folder):
    """No token is a language."""
    path = folder / "vocab.json"
    words = [word.strip("<>") if word.startswith(">>") else word for word in json.loads(path.read_text())]
    path.write_text(json.dumps({word: i for i, word in enumerate(words)}))


def vocabulary(change):
    def damage(folder):
        path = folder / "vocab.json"
        words = change(list(json.loads(path.read_text())))
        path.write_text(json.dumps({word: i for i, word in enumerate(words)}))

    return damage


@pytest.mark.parametrize(
    "options, damage, message",
    [
        ({}, without("target.spm"), "tokenizer.folder: .* has no target.spm; wanted a Marian folder whole"),
        ({}, without("vocab.json"), "has no vocab.json"),
        ({}, vocabulary(lambda words: [*words[:20], "<pad>"]), "vocab.json of .* has .* pieces of source.spm"),
        ({}, vocabulary(lambda words: words[:-1]), "vocab.json of .* lacks "),
        ({}, lambda folder: (folder / "target.spm").write_bytes(b"<html>"), "target.spm is no SentencePiece model"),
        (
            {},
            lambda folder: (folder / "tokenizer_config.json").write_text('{"separate_vocabs": true}'),
            "has separate_vocabs",
        ),
        ({"target": ">>deu<<"}, None, "tokenizer.target: '>>deu<<' is no token of .*; wanted one such as >>fra<<"),
        ({"target": ">>fra<<"}, bilingual, "'>>fra<<' is no token of .*; wanted '': it writes one language"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, options, damage, message):
    folder = marian(tmp_path)
    if damage:
        damage(folder)
    with pytest.raises(KdError, match=message):
        MarianTokenizer(str(folder), **options).check()


def test_tags_of_ours_and_a_cut_that_cannot_be_are_told(folder, tmp_path):
    with pytest.raises(KdError, match="task.directions: the tags <2fr> are no tokens"):
        MarianTokenizer(str(folder)).prepare(TEXTS, tmp_path, ["<2fr>"])
    with pytest.raises(KdError, match="tokenizer.cut: source.spm is no unigram model"):
        MarianTokenizer(str(marian(tmp_path, "bpe")), cut=True).prepare(TEXTS, tmp_path)
