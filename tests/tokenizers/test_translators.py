"""Tokenisers of translation models and BART against transformers: prompts, targets, texts, and what is exported."""

import json

import pytest

from kd_jax.errors import KdError
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from tests.helpers.translators import ROWS, TEXTS, bart, m2m100, marian, nllb

hf = pytest.importorskip("transformers")

CASES = {  # (how the folder is made, our settings, transformers')
    "marian": (marian, {}, {}),
    "nllb": (nllb, {"source": "deu_Latn", "target": "fra_Latn"}, {"src_lang": "deu_Latn", "tgt_lang": "fra_Latn"}),
    "nllb_legacy": (
        lambda folder: nllb(folder, src_lang="eng_Latn", legacy_behaviour=True),
        {"target": "fra_Latn"},
        {"tgt_lang": "fra_Latn"},
    ),
    "m2m100": (m2m100, {"target": "__fr__"}, {"src_lang": "en", "tgt_lang": "fr"}),
    "bart": (bart, {}, {}),
}
WAYS = [(name, cut) for name in CASES for cut in (False, True) if (name, cut) != ("m2m100", True)]  # no unigram model


@pytest.fixture(scope="module", params=WAYS, ids=str)
def case(request, tmp_path_factory):
    """(name, whether it is cut, our tokeniser, transformers' of the folder, of the exported folder)."""
    (name, cut), path = request.param, tmp_path_factory.mktemp("tokeniser")
    make, ours, theirs = CASES[name]
    folders = [path / part for part in ("model", "data", "exported")]
    for folder in folders:
        folder.mkdir()
    model, data, exported = folders
    make(model)
    wanted = HuggingFaceTokenizer(cut=cut, **ours).with_folder(str(model))
    wanted.check()
    wanted.prepare(TEXTS[:60], data)
    tokenizer = wanted.load(data)
    ids = tokenizer.export(exported, "encoder_decoder", True)
    (exported / "config.json").write_bytes((model / "config.json").read_bytes())
    assert ids["decoder_start_token_id"] == tokenizer.start and ids["eos_token_id"] == tokenizer.eos
    auto = hf.AutoTokenizer.from_pretrained
    return name, cut, tokenizer, auto(model, **theirs), auto(exported)


def targets(tokenizer, text, name):
    """What transformers trains a decoder to write; of old, NLLB's language stood last there, but first in decoding."""
    ids = tokenizer(text_target=text)["input_ids"]
    return [ids[-1], *ids[:-1]] if name == "nllb_legacy" else ids


def test_ids_and_texts_are_those_of_transformers(case):
    name, _, ours, theirs, exported = case
    for row in ROWS[:30]:
        prompt, written = ours.encode_prompt(row["en"]), [*ours.forced_prefix, *ours.encode(row["fr"]), ours.eos]
        assert ours.rows_V[prompt].tolist() == theirs(row["en"])["input_ids"]
        assert ours.rows_V[written].tolist() == targets(theirs, row["fr"], name)
        assert exported(row["en"])["input_ids"] == prompt and targets(exported, row["fr"], name) == written
        text = theirs.decode(ours.rows_V[written].tolist(), skip_special_tokens=True)
        assert ours.decode(written) == exported.decode(written, skip_special_tokens=True) == text == row["fr"]


def test_unknown_texts_are_those_of_transformers(case):
    """Cut ones know fewer: as their exported folder says."""
    _, cut, ours, theirs, exported = case
    for text in ("", "  two  blanks ", "Ünknown ☃ letters", "A >> b << c", "a ⁇ b"):
        assert ours.encode_prompt(text) == (exported if cut else theirs)(text)["input_ids"]
        ids = ours.encode(text)
        assert ours.decode(ids) == (exported if cut else theirs).decode(ids, skip_special_tokens=True)


def test_what_is_given_stands_in_front(case):
    name, cut, ours, _, _ = case
    words, wanted = ours.pieces(), {"marian": [], "nllb": ["fra_Latn"], "nllb_legacy": ["fra_Latn"], "bart": ["<s>"]}
    wanted["m2m100"] = ["__fr__"]
    assert [words[i] for i in ours.forced_prefix] == wanted[name]
    assert (ours.vocab_size < max(ours.rows_V) + 1) == cut


def sourceless(folder):
    """As published: it names no language."""
    path = nllb(folder) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"src_lang": None}))
    return folder


def test_a_config_that_names_no_special_tokens_has_their_numbers(tmp_path):
    """As BART was published."""
    (bart(tmp_path) / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    settings = HuggingFaceTokenizer(str(tmp_path))
    settings.prepare(TEXTS, tmp_path)
    tokenizer = settings.load(tmp_path)
    assert (tokenizer.start, tokenizer.eos, tokenizer.pad, tokenizer.forced_prefix) == (2, 2, 1, (0,))


@pytest.mark.parametrize(
    "make, options, message",
    [
        (nllb, {"source": "eng_Latn"}, "tokenizer.target: '' is no token of a m2m_100 folder"),
        (sourceless, {"target": "fra_Latn"}, "tokenizer.source: '' is no token of a m2m_100 folder"),
        (nllb, {"source": "eng_Latn", "target": "fr"}, "tokenizer.target: 'fr' is no token .* such as eng_Latn"),
        (bart, {"target": "fra_Latn"}, "tokenizer.target: 'fra_Latn', but texts of a model of type bart begin"),
        (m2m100, {}, "tokenizer.target: '' is no token of"),
        (m2m100, {"target": "__xx__"}, "tokenizer.target: '__xx__' is no token of"),
        (m2m100, {"target": "__fr__", "cut": True}, "tokenizer.cut: True; .* is an M2M100 model's"),
    ],
)
def test_a_language_that_cannot_be_is_told(tmp_path, make, options, message):
    with pytest.raises(KdError, match=message):
        HuggingFaceTokenizer(**options).with_folder(str(make(tmp_path))).check()
