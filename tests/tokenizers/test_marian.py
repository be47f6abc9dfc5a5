"""MarianTokenizer: ids, language tokens, pruning, and checks of its folder."""

import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from kd_jax.tokenizers.marian import MarianTokenizer
from tests.helpers.tokenizers import prepare_tokenizer
from tests.helpers.translators import ROWS, TEXTS, write_marian


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_marian(tmp_path_factory.mktemp("marian"))


def prepare(folder, path, texts=TEXTS, **options):
    return prepare_tokenizer(MarianTokenizer(str(folder), **options), path, texts)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return prepare(folder, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def pruned(folder, tmp_path_factory):
    return prepare(folder, tmp_path_factory.mktemp("cut"), TEXTS[:20], cut=True)


def read_model(folder, name):
    """Return (the SentencePiece model, token -> id)."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
    return model, json.loads((folder / "vocab.json").read_text())


def test_source_model_encodes_prompts_and_target_model_completions(folder, whole):
    source, vocab = read_model(folder, "source.spm")
    target, _ = read_model(folder, "target.spm")
    unknown = 0
    for row in ROWS:
        pieces = source.encode(row["en"], out_type=str)
        unknown += sum(piece not in vocab for piece in pieces)
        assert whole.encode_prompt(row["en"]) == [
            *(vocab.get(piece, vocab["<unk>"]) for piece in pieces),
            vocab["</s>"],
        ]
        assert whole.encode(row["fr"]) == [vocab[piece] for piece in target.encode(row["fr"], out_type=str)]
        assert whole.decode(whole.encode(row["fr"])) == row["fr"]
    assert unknown and any(whole.encode(row["en"]) != whole.encode_prompt(row["en"])[:-1] for row in ROWS)


def test_start_is_the_padding_token_and_is_suppressed(whole):
    words = whole.pieces()
    assert (words[whole.start], words[whole.eos], words[whole.pad]) == ("<pad>", "</s>", "<pad>")
    assert [words[i] for i in whole.suppress_tokens] == ["<pad>"] and whole.forced_prefix == ()
    assert whole.rows_V.tolist() == list(range(len(words)))


def test_target_language_token_begins_prompts_only(folder, whole, tmp_path):
    with_target = prepare(folder, tmp_path / "oci", target=">>oci<<")
    code = whole.pieces().index(">>oci<<")
    assert with_target.encode_prompt("one boat") == [code, *whole.encode_prompt("one boat")]
    assert whole.encode_prompt(">>oci<< one boat") == with_target.encode_prompt("one boat")
    assert with_target.encode("one boat") == whole.encode("one boat")
    assert code not in whole.encode(">>oci<< one boat") + whole.encode_prompt(">>oci< one boat") + whole.encode_prompt(
        "a >>oci<< b"
    )
    assert with_target.encode_prompt("one boat", max_tokens=2) == [
        code,
        *whole.encode_prompt("one boat")[:2],
        whole.eos,
    ]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20))
def test_no_text_encodes_to_a_special_token(whole, text):
    for text_with_special in (text, f"{text}</s>{text}<pad>"):
        assert not {whole.eos, whole.start} & {
            *whole.encode(text_with_special),
            *whole.encode_prompt(text_with_special)[:-1],
        }


def test_pruned_tokenizer_encodes_its_texts_as_before(whole, pruned):
    assert pruned.vocab_size < whole.vocab_size
    for text in TEXTS[:20]:
        assert pruned.rows_V[pruned.encode(text)].tolist() == whole.encode(text)
        assert pruned.rows_V[pruned.encode_prompt(text)].tolist() == whole.encode_prompt(text)
    assert (pruned.rows_V[pruned.start], pruned.rows_V[pruned.eos]) == (whole.start, whole.eos)
    assert [whole.pieces()[row] for row in pruned.rows_V] == pruned.pieces()


def test_pruned_tokenizer_encodes_other_texts(pruned):
    for row in ROWS[20:]:
        assert pruned.decode(pruned.encode(row["fr"])) == row["fr"]


def test_pruning_keeps_languages_in_use(folder, tmp_path):
    in_texts = prepare(folder, tmp_path / "kept", [">>fra<< one boat"], cut=True)
    assert ">>fra<<" in in_texts.pieces() and ">>oci<<" not in in_texts.pieces()
    assert ">>oci<<" in prepare(folder, tmp_path / "set", TEXTS[:5], cut=True, target=">>oci<<").pieces()


def test_hugging_face_settings_become_marian_settings(folder):
    settings_of_folder = HuggingFaceTokenizer(cut=True, target=">>fra<<").with_folder(str(folder))
    assert settings_of_folder == MarianTokenizer(str(folder), target=">>fra<<", cut=True)
    with pytest.raises(
        KdError, match="tokenizer.prefix: expected its default for a Marian model's folder .*, got 'say: '"
    ):
        HuggingFaceTokenizer(prefix="say: ").with_folder(str(folder))


def remove(name):
    return lambda folder: (folder / name).unlink()


def remove_languages(folder):
    """Remove all language tokens from the vocabulary."""
    path = folder / "vocab.json"
    words = [word.strip("<>") if word.startswith(">>") else word for word in json.loads(path.read_text())]
    path.write_text(json.dumps({word: i for i, word in enumerate(words)}))


def change_vocabulary(change):
    def damage(folder):
        path = folder / "vocab.json"
        words = change(list(json.loads(path.read_text())))
        path.write_text(json.dumps({word: i for i, word in enumerate(words)}))

    return damage


@pytest.mark.parametrize(
    "options, damage, message",
    [
        ({}, remove("target.spm"), "tokenizer.folder: expected a Marian folder with .* without target.spm"),
        ({}, remove("vocab.json"), "without vocab.json"),
        (
            {},
            change_vocabulary(lambda words: [*words[:20], "<pad>"]),
            "expected the pieces of source.spm in vocab.json of .*, got",
        ),
        ({}, change_vocabulary(lambda words: words[:-1]), "decoder_start_token_id: expected the id of a token, got"),
        (
            {},
            lambda folder: (folder / "target.spm").write_bytes(b"<html>"),
            "expected a SentencePiece model in target.spm",
        ),
        (
            {},
            lambda folder: (folder / "tokenizer_config.json").write_text('{"separate_vocabs": true}'),
            "got separate_vocabs in",
        ),
        (
            {"target": ">>deu<<"},
            None,
            "tokenizer.target: expected a language token of .*, got '>>deu<<'. Name one, such as >>fra<<",
        ),
        ({"target": ">>fra<<"}, remove_languages, "got '>>fra<<'. Set it to '': the model has one target language"),
    ],
)
def test_check_raises(tmp_path, options, damage, message):
    folder = write_marian(tmp_path)
    if damage:
        damage(folder)
    with pytest.raises(KdError, match=message):
        MarianTokenizer(str(folder), **options).check()


def test_prepare_raises(folder, tmp_path):
    with pytest.raises(KdError, match="task.directions: expected one direction .* got the tags <2fr>"):
        MarianTokenizer(str(folder)).prepare(TEXTS, tmp_path, ["<2fr>"])
    with pytest.raises(KdError, match="tokenizer.cut: expected a unigram model in source.spm"):
        MarianTokenizer(str(write_marian(tmp_path, "bpe")), cut=True).prepare(TEXTS, tmp_path)
