"""Tokenizers as people have them: every section, absent keys, tokens without rows, lost characters, cut prompts."""

import json
import os
import shutil
import time

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from kd_jax.errors import KdError
from kd_jax.experiment import resolve
from kd_jax.phases.check import check
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from kd_jax.tokenizers.sentencepiece import SentencePiece
from tests.helpers.pretrained import CHAT, TEXTS, train_bpe, train_unigram, write_pretrained
from tests.helpers.tokenizers import prepare_tokenizer
from tests.helpers.translators import write_bart, write_m2m100, write_marian, write_nllb
from tests.phases.test_pretrained import pretrained_experiment

FAMILIES = ["decoder_only", "encoder_decoder"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def write(folder, tokenizer, names=NAMES, **config):
    """Write a tokenizer and its configuration, without a network; return the folder."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change(folder, edit, name="tokenizer.json"):
    """Change a JSON file; return the folder."""
    content = json.loads((folder / name).read_text())
    content = edit(content) or content
    (folder / name).write_text(json.dumps(content))
    return folder


def load(folder, path, texts=TEXTS, **options):
    return prepare_tokenizer(HuggingFaceTokenizer(str(folder), **options).with_folder(str(folder)), path, texts)


# Sections and keys


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("direction", ["left", "right"])
def test_padding_and_truncation_change_nothing(family, direction, tmp_path):
    folder = write_pretrained(tmp_path / "model", family, chat=CHAT)
    plain, chat = load(folder, tmp_path / "plain"), load(folder, tmp_path / "chat", chat=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(direction=direction, pad_token="<pad>", length=32)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    with_sections = load(folder, tmp_path / "plain2"), load(folder, tmp_path / "chat2", chat=True)
    for expected, ours in zip((plain, chat), with_sections, strict=True):
        assert (ours.start, ours.pieces()) == (expected.start, expected.pieces())
        for text in TEXTS[:5]:
            assert ours.encode(text) == expected.encode(text)
            assert ours.encode_prompt(text) == expected.encode_prompt(text)
    (tmp_path / "out").mkdir()
    with_sections[0].export(tmp_path / "out", family, True)
    exported = json.loads((tmp_path / "out/tokenizer.json").read_text())
    assert exported["padding"] is None and exported["truncation"] is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", ["added_tokens", "post_processor", "padding", "truncation", "version"])
def test_absent_keys(family, key, tmp_path):
    """The library's answer decides: the same ids, or one line."""
    folder = write_pretrained(tmp_path / "model", family)
    change(folder, lambda spec: {name: value for name, value in spec.items() if name != key})
    try:
        library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:
        with pytest.raises(KdError, match="tokenizer.json: expected a file of the library tokenizers"):
            load(folder, tmp_path / "data")
        return
    ours = load(folder, tmp_path / "data")
    assert [ours.encode(text) for text in TEXTS] == [
        library.encode(text, add_special_tokens=False).ids for text in TEXTS
    ]


def test_old_kinds_of_merges_and_dropout(tmp_path):
    """Merges were one string, and a model may drop merges at random, which would change ids from call to call."""
    folder = write_pretrained(tmp_path / "model", "decoder_only")
    expected = load(folder, tmp_path / "data")

    def edit(spec):
        spec["model"]["merges"] = [" ".join(merge) for merge in spec["model"]["merges"]]
        spec["model"]["dropout"] = 0.9

    ours = load(change(folder, edit), tmp_path / "data2", cut=True)
    for text in TEXTS:
        assert ours.rows_V[ours.encode(text)].tolist() == expected.encode(text)


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{}", '"a"', "{", '{"model": {}}', "\ud800", "[" * 100_000, "\x00"]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_other_contents_are_refused_in_one_line(name, content, tmp_path):
    folder = write(tmp_path / "model", train_bpe())
    (folder / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    if name == "config.json" and content in ("{}", '{"model": {}}'):
        return
    with pytest.raises(KdError) as error:
        load(folder, tmp_path / "data")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json"])
def test_what_has_no_end_is_not_read(name, kind, tmp_path):
    folder = write(tmp_path / "model", train_bpe()) if name != "vocab.json" else write_marian(tmp_path)
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "zero":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).mkdir()
    with pytest.raises(KdError, match=f"without {name}"):
        load(folder, tmp_path / "data")


@pytest.mark.parametrize("bad", [10**9, 4 * 10**9, -1, True, "7", None])
def test_ids_are_bounded_by_the_file(bad, tmp_path):
    """A table has a row for each id: 10**9 would take 8 GB."""
    edits = {
        write(tmp_path / "bpe", train_bpe()): "tokenizer.json",
        write_marian(_new(tmp_path / "marian")): "vocab.json",
    }
    for folder, name in edits.items():

        def edit(spec, name=name):
            (spec["model"]["vocab"] if name == "tokenizer.json" else spec)["zzz"] = bad

        change(folder, edit, name)
        began = time.monotonic()
        with pytest.raises(KdError, match=f"{name}: expected (ids from 0 to the file's size|a file of the library)"):
            HuggingFaceTokenizer().with_folder(str(folder)).check()
        assert time.monotonic() - began < 10


def test_an_added_token_s_id_is_the_library_s(tmp_path):
    """It numbers added tokens itself, after the model's."""
    folder = write(tmp_path / "model", train_bpe())

    def edit(spec):
        token = spec["added_tokens"][0] | {"content": "<far>", "id": 10**9}
        spec["added_tokens"].append(token)

    change(folder, edit)
    assert load(folder, tmp_path / "data").pieces()[-1] == "<far>"


def _new(folder):
    folder.mkdir()
    return folder


# Special tokens


def test_names_from_an_older_folder(tmp_path):
    """special_tokens_map.json, and as GPT-2 was published: with ids only."""
    folder = write(tmp_path / "model", train_bpe(), {"model_max_length": 1024}, eos_token_id=2, bos_token_id=1)
    assert (load(folder, tmp_path / "ids").eos, load(folder, tmp_path / "ids").start) == (2, 1)
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<pad>"}, "bos_token": "</s>"})
    )
    by_map = load(folder, tmp_path / "map")
    assert (by_map.eos, by_map.start) == (0, 2)


def test_a_null_start_is_no_start(tmp_path):
    """Qwen 2: config.json has an id of a start that its tokenizer never adds."""
    names = NAMES | {"bos_token": None}
    folder = write(tmp_path / "model", train_bpe(), names, bos_token_id=1, eos_token_id=2)
    assert load(folder, tmp_path / "data").start == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_language_tags_are_single_tokens(family, tmp_path):
    """Other special tokens in a text are spelt, but a task's tags are tokens."""
    folder = write_pretrained(tmp_path / "model", family)
    settings_of = HuggingFaceTokenizer(str(folder))
    (tmp_path / "data").mkdir()
    settings_of.prepare(TEXTS, tmp_path / "data", ["<2fr>"])
    tokenizer = settings_of.load(tmp_path / "data")
    tag = tokenizer.pieces().index("<2fr>")
    assert tokenizer.encode_prompt("<2fr> a boat").count(tag) == 1
    assert tag not in tokenizer.encode("a boat") and tokenizer.eos not in tokenizer.encode("<2fr> </s>")


def test_a_chat_s_first_token_stays_in_completions(tmp_path):
    """A chat may begin with an ordinary token, which is then the start token."""
    template = "{% for m in messages %}[{{ m.content }}]</s>{% endfor %}"
    tokenizer = load(write_pretrained(tmp_path / "model", "decoder_only", chat=template), tmp_path / "data", chat=True)
    assert tokenizer.pieces()[tokenizer.start] == "["
    assert tokenizer.decode(tokenizer.encode("x[1] = [a]")) == "x[1] = [a]"


def test_chats_without_one_first_token_are_refused(tmp_path):
    folder = write_pretrained(
        tmp_path / "model", "decoder_only", chat="{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    )
    with pytest.raises(KdError, match="tokenizer.chat: expected a template whose chats begin with one token"):
        HuggingFaceTokenizer(str(folder), chat=True).check()


# Tokens without rows


def with_added(tokenizer, *tokens):
    tokenizer.add_special_tokens(list(tokens))
    return tokenizer


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("train", [train_bpe, train_unigram])
def test_added_tokens_without_rows_are_no_tokens(train, nested, tmp_path, capsys):
    """Gemma 3 and Llama 2 have one token more than their embedding has rows."""
    whole = train()
    rows = whole.get_vocab_size()
    config = {"text_config": {"vocab_size": rows}} if nested else {"vocab_size": rows}
    larger = with_added(Tokenizer.from_str(whole.to_str()), "<image>", "<video>")
    folder = write(tmp_path / "model", larger, **config)
    tokenizer = load(folder, tmp_path / "data")
    assert tokenizer.vocab_size == rows and "<image>" not in tokenizer.pieces()
    assert "<image>, <video>" in capsys.readouterr().err
    whole.encode_special_tokens = True
    for text in (*TEXTS[:10], "an <image> here"):
        assert tokenizer.encode(text) == whole.encode(text, add_special_tokens=False).ids
        assert max(tokenizer.encode_prompt(text)) < rows


def test_a_padding_token_without_a_row_is_left_out(tmp_path):
    """Llama 2 with a padding token that somebody added."""
    tokenizer = train_bpe()
    folder = write(
        tmp_path / "model",
        with_added(train_bpe(), "<more>"),
        NAMES | {"pad_token": "<more>"},
        vocab_size=tokenizer.get_vocab_size(),
    )
    assert load(folder, tmp_path / "data").pad == -1


@pytest.mark.parametrize(
    "names, template, rows, message",
    [
        (
            NAMES | {"eos_token": "<more>"},
            "",
            400,
            "expected a row of the embedding for the token eos, '<more>', got 400 rows",
        ),
        (NAMES | {"bos_token": "<more>"}, "", 400, "expected a row of the embedding for the token bos, '<more>'"),
        (NAMES, "<s>{% for m in messages %}<more>{{ m.content }}</s>{% endfor %}", 400, "tokens have rows .*'<more>'"),
        (NAMES, "", 399, "tokenizer.json: expected ids below 399, the embedding's rows .*, got 399"),
    ],
)
def test_needed_tokens_without_rows_are_refused_before_any_work(names, template, rows, message, tmp_path):
    assert train_bpe().get_vocab_size() == 400
    folder = write(tmp_path / "model", with_added(train_bpe(), "<more>"), names, vocab_size=rows)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(KdError, match=message):
        HuggingFaceTokenizer(str(folder), chat=bool(template)).check()


# Characters without tokens


def train_lossy(kind):
    """Train a tokenizer of TEXTS' characters that has no unknown token."""
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    if kind == "bytes":
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_lost_characters_are_counted_and_named(kind, tmp_path, capsys):
    """Their number is known: one snowman in ten texts and three epsilons."""
    folder = write(tmp_path / "model", train_lossy(kind))
    texts = [*TEXTS, *TEXTS, "☃ one", "ε two εε"]
    characters = sum(len("".join(text.split())) for text in texts)
    tokenizer = load(folder, tmp_path / "data", texts)
    err = capsys.readouterr().err
    assert f"no token for, and drops, 4 of {characters} characters: " in err
    assert "'ε' (U+03B5, 3 times), '☃' (U+2603, 1 times)" in err
    if kind == "bpe":
        assert tokenizer.decode(tokenizer.encode("a☃b")) == tokenizer.decode(tokenizer.encode("ab"))


@pytest.mark.parametrize("cut", [False, True])
def test_many_lost_characters_are_refused(cut, tmp_path):
    folder = write(tmp_path / "model", train_lossy("bpe"))
    with pytest.raises(KdError, match=r"got none in .* for 5 of 7 characters: 'ж' \(U\+0436, 4 times\), 'ы'"):
        load(folder, tmp_path / "data", ["жжж ab", "ж ы"], cut=cut)


def test_nothing_is_counted_where_nothing_is_lost(tmp_path, capsys):
    """By an unknown token, by bytes, or because the normalizer removes or replaces the character."""
    for number, tokenizer in enumerate((train_bpe(), train_unigram(), train_lossy("bpe"))):
        load(write(tmp_path / f"{number}", tokenizer), tmp_path / f"data{number}", [*TEXTS, "ａ"])
    assert "no token" not in capsys.readouterr().err


@pytest.mark.parametrize("cut", [False, True])
def test_a_unigram_model_without_an_unknown_token(cut, tmp_path):
    folder = write(tmp_path / "model", train_lossy("unigram"))
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["unk_id"] is None
    tokenizer = load(folder, tmp_path / "data", cut=cut)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS[:20]] == TEXTS[:20]
    with pytest.raises(KdError, match="text: expected characters that the tokenizer knows, got 'a ☃'"):
        tokenizer.encode_prompt("a ☃")
    with pytest.raises(KdError, match="expected (characters that the tokenizer knows|tokens for all characters)"):
        load(folder, tmp_path / "data2", ["a ☃"], cut=cut)


# Cut prompts


def train_wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def train_byte_fallback():
    """Train a BPE tokenizer of words behind ▁ whose unknown characters are bytes, as Llama 2's and Gemma's."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
    spec = json.loads(tokenizer.to_str())
    vocab = spec["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    return Tokenizer.from_str(json.dumps(spec))


TRAINERS = {
    "byte_level": train_bpe,
    "unigram": train_unigram,
    "byte_fallback": train_byte_fallback,
    "wordpiece": train_wordpiece,
}
SPM = {
    "spm_unigram": {"vocab_size": 60},
    "spm_bpe": {"vocab_size": 60, "model_type": "bpe"},
    "spm_bytes": {"vocab_size": 310, "byte_fallback": True},
}
TRANSLATORS = {
    "marian": (write_marian, {"target": ">>fra<<"}),
    "m2m100": (write_m2m100, {"target": "__fr__"}),
    "nllb": (write_nllb, {"source": "deu_Latn", "target": "fra_Latn"}),
    "bart": (write_bart, {}),
}
PARTS = st.sampled_from(["😀", "é", "👨‍👩‍👧", "ﬁ", "  ", " ", "a boat", "two", "\n", "</s>", "日本", "x", "ß"])
PROMPTS = st.one_of(st.lists(PARTS, max_size=12).map("".join), st.text(max_size=20))


@pytest.fixture(scope="module", params=[*TRAINERS, *SPM, *TRANSLATORS])
def cut_case(request, tmp_path_factory):
    """Return (a tokenizer, function of a text: the ids of all its tokens, ids before and after them in a prompt)."""
    name, path = request.param, tmp_path_factory.mktemp("cut")
    if name in SPM:
        tokenizer = prepare_tokenizer(SentencePiece(**SPM[name]), path / "data", TEXTS)
        model = sentencepiece.SentencePieceProcessor(model_file=str(path / "data/tokenizer.model"))
        return tokenizer, model.encode, [], [tokenizer.eos]
    if name in TRAINERS:
        library = TRAINERS[name]()
        tokenizer = load(write(path / "model", library), path / "data", texts=[*TEXTS, *TEXTS])
        library.encode_special_tokens = True
        special = {library.token_to_id(token) for token in NAMES.values()}

        def encode(text):
            ids = library.encode(text, add_special_tokens=False).ids
            return [i for i in ids if i not in special]  # a unigram model has </s> among its pieces

        return tokenizer, encode, [], [tokenizer.eos]
    make, options = TRANSLATORS[name]
    tokenizer = load(make(_new(path / "model")), path / "data", **options)
    around = tokenizer.encode_prompt("")
    before = around.index(tokenizer.eos)
    if name in ("nllb", "bart"):
        library = Tokenizer.from_file(str(path / "data/tokenizer.json"))
        library.encode_special_tokens = True
        return (
            tokenizer,
            lambda text: library.encode(text, add_special_tokens=False).ids,
            around[:before],
            around[before:],
        )
    whole = lambda text: tokenizer.encode_prompt(text)[before : -len(around[before:])]  # noqa: E731
    return tokenizer, whole, around[:before], around[before:]


@settings(max_examples=80, deadline=None)
@given(text=PROMPTS, count=st.integers(1, 12))
def test_a_cut_prompt_has_the_first_tokens(cut_case, text, count):
    """Exactly min(N, len) tokens: those of the whole prompt, even inside a character of several tokens."""
    tokenizer, encode, before, after = cut_case
    assert tokenizer.encode_prompt(text, count) == [*before, *encode(text)[:count], *after]


@settings(max_examples=80, deadline=None)
@given(text=PROMPTS, count=st.integers(1, 8))
def test_a_cut_prompt_keeps_its_prefix(prefixed, text, count):
    library, tokenizer = prefixed
    ids = library.encode("sum up: " + text, add_special_tokens=False).ids
    prefix = len(library.encode("sum up:", add_special_tokens=False).ids)
    assert tokenizer.encode_prompt(text, count) == [*ids[: prefix + count], tokenizer.eos]


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory):
    """Return (the library's byte-level tokenizer, ours with a prefix)."""
    path, library = tmp_path_factory.mktemp("prefixed"), train_bpe()
    tokenizer = load(write(path / "model", library), path / "data", prefix="sum up: ")
    library.encode_special_tokens = True
    return library, tokenizer


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    """Return (the library's byte-level tokenizer, ours with a chat template)."""
    path = tmp_path_factory.mktemp("chatting")
    tokenizer = load(write_pretrained(path / "model", "decoder_only", chat=CHAT), path / "data", chat=True)
    return Tokenizer.from_file(str(path / "model/tokenizer.json")), tokenizer


@settings(max_examples=80, deadline=None)
@given(text=PROMPTS.map(lambda text: "a" + text.replace("</s>", "")), count=st.integers(1, 8))
def test_a_cut_message_keeps_its_chat(chatting, text, count):
    library, tokenizer = chatting
    before, after = ([*library.encode(part, add_special_tokens=False).ids] for part in ("<s>[user]", "</s>[assistant]"))
    message = library.encode(f"<s>[user]{text}</s>[assistant]", add_special_tokens=False).ids[len(before) : -len(after)]
    assert [tokenizer.start, *tokenizer.encode_prompt(text, count)] == [*before, *message[:count], *after]


def test_a_tokenizer_of_another_model_is_refused_before_prepare(tmp_path, root):
    """Also where config.json does not say how many rows there are."""
    folder = write_pretrained(tmp_path / "model", "encoder_decoder")
    larger = write_pretrained(tmp_path / "other", "decoder_only")
    (larger / "config.json").unlink()
    experiment = resolve(pretrained_experiment(root, folder, "encoder_decoder", other=str(larger)))
    with pytest.raises(KdError, match=r"teacher.init.folder: expected an embedding with at least 400 rows"):
        check(experiment)


def test_a_model_of_another_vocabulary_is_refused_by_its_first_token(tmp_path, root):
    """Two tokens have each other's id; their number is the same. The same file in another folder is accepted."""
    folder = write_pretrained(tmp_path / "model", "decoder_only")
    same, other = tmp_path / "same", tmp_path / "other"
    shutil.copytree(folder, same)
    shutil.copytree(folder, other)
    check(resolve(pretrained_experiment(root, folder, "decoder_only", other=str(same))))
    spec = json.loads((other / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[-2:]
    a, b = vocab[first], vocab[second]
    vocab[first], vocab[second] = b, a
    (other / "tokenizer.json").write_text(json.dumps(spec))
    experiment = resolve(pretrained_experiment(root, folder, "decoder_only", other=str(other)))
    with pytest.raises(KdError) as error:
        check(experiment)
    assert str(error.value).startswith("teacher.init.folder: expected a model with the run's tokenizer, that of")
    # `other` is the tokenizer's folder here, so its ids are the run's.
    assert f"is token {a}, here token {b}" in str(error.value) or f"is token {b}, here token {a}" in str(error.value)
