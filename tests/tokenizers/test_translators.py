"""Tokenizers of translation models and BART equal transformers': prompts, targets, texts, exported files."""

import json

import pytest

from kd_jax.errors import KdError
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from tests.helpers.tokenizers import prepare_tokenizer
from tests.helpers.translators import ROWS, TEXTS, write_bart, write_m2m100, write_marian, write_nllb

hf = pytest.importorskip("transformers")

CASES = {  # (function that makes the folder, our settings, transformers' settings)
    "marian": (write_marian, {}, {}),
    "nllb": (
        write_nllb,
        {"source": "deu_Latn", "target": "fra_Latn"},
        {"src_lang": "deu_Latn", "tgt_lang": "fra_Latn"},
    ),
    "nllb_legacy": (
        lambda folder: write_nllb(folder, src_lang="eng_Latn", legacy_behaviour=True),
        {"target": "fra_Latn"},
        {"tgt_lang": "fra_Latn"},
    ),
    "m2m100": (write_m2m100, {"target": "__fr__"}, {"src_lang": "en", "tgt_lang": "fr"}),
    "bart": (write_bart, {}, {}),
}
PARAMS = [
    (name, cut) for name in CASES for cut in (False, True) if (name, cut) != ("m2m100", True)
]  # M2M100's cannot be pruned


@pytest.fixture(scope="module", params=PARAMS, ids=str)
def case(request, tmp_path_factory):
    """Return (name, cut, our tokenizer, transformers' of the folder, transformers' of the exported folder)."""
    (name, cut), path = request.param, tmp_path_factory.mktemp("tokenizer")
    make, ours, theirs = CASES[name]
    folders = [path / part for part in ("model", "data", "exported")]
    for folder in folders:
        folder.mkdir()
    model, data, exported = folders
    make(model)
    settings = HuggingFaceTokenizer(cut=cut, **ours).with_folder(str(model))
    tokenizer = prepare_tokenizer(settings, data, TEXTS[:60])
    ids = tokenizer.export(exported, "encoder_decoder", True)
    (exported / "config.json").write_bytes((model / "config.json").read_bytes())
    assert ids["decoder_start_token_id"] == tokenizer.start and ids["eos_token_id"] == tokenizer.eos
    auto = hf.AutoTokenizer.from_pretrained
    return name, cut, tokenizer, auto(model, **theirs), auto(exported)


def target_ids(tokenizer, text, name):
    """Return transformers' training targets. Legacy NLLB has the language last there, but first in decoding."""
    ids = tokenizer(text_target=text)["input_ids"]
    return [ids[-1], *ids[:-1]] if name == "nllb_legacy" else ids


def test_ids_and_texts_equal_transformers(case):
    name, _, ours, theirs, exported = case
    for row in ROWS[:30]:
        prompt, completion = ours.encode_prompt(row["en"]), [*ours.forced_prefix, *ours.encode(row["fr"]), ours.eos]
        assert ours.rows_V[prompt].tolist() == theirs(row["en"])["input_ids"]
        assert ours.rows_V[completion].tolist() == target_ids(theirs, row["fr"], name)
        assert exported(row["en"])["input_ids"] == prompt and target_ids(exported, row["fr"], name) == completion
        text = theirs.decode(ours.rows_V[completion].tolist(), skip_special_tokens=True)
        assert ours.decode(completion) == exported.decode(completion, skip_special_tokens=True) == text == row["fr"]


def test_unusual_texts_equal_transformers(case):
    """A pruned tokenizer is compared with its exported folder."""
    _, cut, ours, theirs, exported = case
    for text in ("", "  two  blanks ", "Ünknown ☃ letters", "A >> b << c", "a ⁇ b"):
        assert ours.encode_prompt(text) == (exported if cut else theirs)(text)["input_ids"]
        ids = ours.encode(text)
        assert ours.decode(ids) == (exported if cut else theirs).decode(ids, skip_special_tokens=True)


def test_forced_prefix(case):
    name, cut, ours, _, _ = case
    tokens, expected = ours.pieces(), {"marian": [], "nllb": ["fra_Latn"], "nllb_legacy": ["fra_Latn"], "bart": ["<s>"]}
    expected["m2m100"] = ["__fr__"]
    assert [tokens[i] for i in ours.forced_prefix] == expected[name]
    assert (ours.vocab_size < max(ours.rows_V) + 1) == cut


def nllb_without_source(folder):
    """Make a folder without a source language, as NLLB was published."""
    path = write_nllb(folder) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"src_lang": None}))
    return folder


def test_special_tokens_from_ids_alone(tmp_path):
    """As BART was published."""
    (write_bart(tmp_path) / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    tokenizer = prepare_tokenizer(HuggingFaceTokenizer(str(tmp_path)), tmp_path, TEXTS)
    assert (tokenizer.start, tokenizer.eos, tokenizer.pad, tokenizer.forced_prefix) == (2, 2, 1, (0,))


@pytest.mark.parametrize(
    "make, options, message",
    [
        (
            write_nllb,
            {"source": "eng_Latn"},
            "tokenizer.target: expected a language token of the m2m_100 folder, got ''",
        ),
        (
            nllb_without_source,
            {"target": "fra_Latn"},
            "tokenizer.source: expected a language token of the m2m_100 folder, got ''",
        ),
        (
            write_nllb,
            {"source": "eng_Latn", "target": "fr"},
            "tokenizer.target: .* got 'fr'. Name one, such as eng_Latn",
        ),
        (
            write_bart,
            {"target": "fra_Latn"},
            "tokenizer.target: expected '' for a model of type bart, .* got 'fra_Latn'",
        ),
        (write_m2m100, {}, "tokenizer.target: expected a language token of .*, got ''"),
        (write_m2m100, {"target": "__xx__"}, "tokenizer.target: expected a language token of .*, got '__xx__'"),
        (
            write_m2m100,
            {"target": "__fr__", "cut": True},
            "tokenizer.cut: expected its default for an M2M100 model's folder .*, got True",
        ),
    ],
)
def test_invalid_languages(tmp_path, make, options, message):
    with pytest.raises(KdError, match=message):
        HuggingFaceTokenizer(**options).with_folder(str(make(tmp_path))).check()
