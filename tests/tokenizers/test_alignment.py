"""Chunks of two tokenizations against a search over all pairs of prefixes."""

import functools
import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kd_jax import HuggingFaceTokenizer, KdError, MarianTokenizer, SentencePiece, Toy
from kd_jax.tokenizers.alignment import ChunkEnds, TokenBytes, Unaligned, align
from kd_jax.tokenizers.byte_level import ByteLevel
from kd_jax.tokenizers.marian import TARGET, LoadedMarian
from tests.helpers.tokenizers import prepare_tokenizer
from tests.helpers.translators import write_marian

ROWS = Toy(300).splits(("en", "fr"))["train"]
TEXTS = [text for row in ROWS for text in row.values()] + [
    "Ça coûte 5 €, naïve café",
    "日本語のテキスト",
    "שלום עולם",
    "🙂🙃 ok",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def write_json(folder, kind):
    """A tokenizer.json of a published kind: byte-level BPE, unigram with Metaspace, or BPE with byte fallback."""
    alphabet, decoder = [], decoders.Metaspace()
    if kind == "byte_level":
        tokenizer, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer
        tokenizer.pre_tokenizer, decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "unigram":
        tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        tokenizer, trainer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>")), trainers.BpeTrainer
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        blank = decoders.Replace("▁", " ")
        decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = SPECIAL + ([f"<0x{byte:02X}>" for byte in range(256)] if kind == "fallback" else [])
    options = {"unk_token": "<unk>"} if kind == "unigram" else {}
    size = 600 if alphabet or kind == "fallback" else 120
    made = trainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False, **options)
    tokenizer.train_from_iterator(TEXTS, made)
    tokenizer.decoder = decoder
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in SPECIAL]
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return HuggingFaceTokenizer(folder=str(folder))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    (root / "marian").mkdir()
    written = {name: write_json(root / f"{name}_json", name) for name in ("byte_level", "unigram", "fallback")}
    every = {
        "sp_unigram": SentencePiece(vocab_size=84),
        "sp_bpe": SentencePiece(vocab_size=110, model_type="bpe", normalization="identity"),
        "sp_bytes": SentencePiece(vocab_size=315, byte_fallback=True, character_coverage=0.98, normalization="nfkc"),
        "marian": MarianTokenizer(folder=str(write_marian(root / "marian"))),
        "bytes": ByteLevel(),
        **written,
    }
    return {name: prepare_tokenizer(settings, root / name, TEXTS) for name, settings in every.items()}


@functools.cache
def token_bytes(tokenizer):
    return TokenBytes(tokenizer.token_bytes(), frozenset(tokenizer.ends))


def written(tokenizer, ids):
    """The text of a tokenization's prefixes without spaces around it, by its own decoder.

    None where a character is not complete.
    """
    decode = tokenizer.decode
    if isinstance(tokenizer, LoadedMarian):  # its decoder drops a space at the end
        pieces = tokenizer.pieces()
        decode = lambda ids: tokenizer.models[TARGET].decode([pieces[i] for i in ids])  # noqa: E731
    texts = [decode(ids[:count]) for count in range(len(ids) + 1)]
    length = len(texts[-1].strip(" "))
    return [None if "\ufffd" in text else text.lstrip(" ")[:length] for text in texts]


def search(student_ids, teacher_ids, student, teacher):
    """All pairs of prefixes, except empty ones, that write the same text; of equal texts the longest prefixes."""
    sides = written(student, student_ids), written(teacher, teacher_ids)
    pairs = {}
    for (i, a), (j, b) in itertools.product(*(enumerate(side) for side in sides)):
        if a is not None and a == b and a:
            pairs[a] = (max(i, pairs.get(a, (0, 0))[0]), max(j, pairs.get(a, (0, 0))[1]))
    return sorted(pairs.values())


PAIRS = [
    ("sp_unigram", "sp_bpe"),
    ("sp_bpe", "byte_level"),
    ("byte_level", "fallback"),
    ("sp_bytes", "byte_level"),
    ("unigram", "sp_unigram"),
    ("marian", "sp_bpe"),
    ("bytes", "sp_unigram"),
    ("fallback", "bytes"),
]
each_pair = pytest.mark.parametrize("names", PAIRS, ids=lambda names: "-".join(names))
WORDS = [
    "the",
    "red",
    "bird",
    "two",
    "café",
    "naïve",
    "日本",
    "語",
    "שלום",
    "🙂",
    "👩\u200d👧",
    "e\u0301",
    "ب",
    "x",
    "5",
    "€",
]
LETTERS = "aeinrst àéç日語של🙂\u0301"
TEXT = st.one_of(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), st.text(LETTERS, max_size=12))


def check(text, student, teacher):
    """Return whether the text is aligned; its chunks are those of the search."""
    ids = student.encode(text), teacher.encode(text)
    chunks = align(*ids, token_bytes(student), token_bytes(teacher))
    if isinstance(chunks, Unaligned):
        return False
    # A character of several byte tokens is complete at its end, where the search has its prefix.
    got = list(zip(chunks.student.tolist(), chunks.teacher.tolist(), strict=True))
    want = search(*ids, student, teacher)
    complete = {
        pair for pair in got if None not in (written(student, ids[0])[pair[0]], written(teacher, ids[1])[pair[1]])
    }
    assert complete == set(want), text
    assert got == sorted(set(got)) and (not got or got[-1] == (len(ids[0]), len(ids[1])))
    return True


@each_pair
@settings(max_examples=20, deadline=None)
@given(TEXT)
@example("🙂🙃 ok")
@example(" x")
@example("a  ")
@example("  ")
def test_chunks_are_those_of_a_search_over_all_prefixes(tokenizers, names, text):
    check(text, *(tokenizers[name] for name in names))


@pytest.mark.extended
@each_pair
@settings(max_examples=1250, deadline=None)
@given(TEXT)
def test_ten_thousand_texts_of_eight_pairs_have_the_chunks_of_the_search(tokenizers, names, text):
    check(text, *(tokenizers[name] for name in names))


@each_pair
def test_texts_of_the_training_split_are_aligned(tokenizers, names):
    student, teacher = (tokenizers[name] for name in names)
    aligned = [check(text, student, teacher) for text in TEXTS[:12]]
    assert all(aligned)


@pytest.mark.parametrize("names", [("bytes", "byte_level"), ("sp_bytes", "bytes")])
def test_characters_of_several_tokens_are_divided_where_both_divide_them(tokenizers, names):
    """The smiley has four bytes, each a token on both sides."""
    student, teacher = (tokenizers[name] for name in names)
    ids = student.encode("🙃"), teacher.encode("🙃")
    chunks = align(*ids, token_bytes(student), token_bytes(teacher))
    bytes_of = [
        [len(part) for part in token_bytes(one).of(each)] for one, each in zip((student, teacher), ids, strict=True)
    ]
    ends = [set(np.cumsum(lengths).tolist()) - {0} for lengths in bytes_of]
    assert len(chunks.student) == len(ends[0] & ends[1]) >= 1


def test_a_tokenization_with_itself_has_a_chunk_for_each_token(tokenizers):
    for tokenizer in tokenizers.values():
        ids = [*tokenizer.encode("the red bird"), tokenizer.eos]
        side = token_bytes(tokenizer)
        without_text = sum(not part for part in side.of(ids)[:-1])  # a space that is not compared
        chunks = align(ids, ids, side, side)
        assert chunks.student.tolist() == chunks.teacher.tolist() == [*range(1 + without_text, len(ids) + 1)]


def test_end_tokens_are_a_chunk_of_their_own(tokenizers):
    student, teacher = tokenizers["sp_unigram"], tokenizers["bytes"]
    texts = [*student.encode("two birds"), student.eos], [*teacher.encode("two birds"), teacher.eos]
    sides = token_bytes(student), token_bytes(teacher)
    both, one = align(*texts, *sides), align(texts[0], texts[1][:-1], *sides)
    assert (both.student[-1], both.teacher[-1]) == (len(texts[0]), len(texts[1]))
    assert (one.student[-1], one.teacher[-1]) == (len(texts[0]) - 1, len(texts[1]) - 1)
    assert len(both.student) == len(one.student) + 1
    assert align([student.eos], [teacher.eos], *sides) == ChunkEnds(np.array([1]), np.array([1]))
    assert [len(ends) for ends in align([], [], *sides)] == [0, 0]


def test_other_texts_and_unknown_tokens_are_not_aligned(tokenizers):
    student, teacher = tokenizers["sp_unigram"], tokenizers["bytes"]
    sides = token_bytes(student), token_bytes(teacher)
    assert align(student.encode("two ☃"), teacher.encode("two ☃"), *sides).reason == "unknown token"
    different = align(student.encode("a two  birds"), teacher.encode("a two  birds"), *sides)  # one space is dropped
    assert different == Unaligned("other text", b"a two birds", b"a two  birds")


def test_a_tokenizer_whose_tokens_have_no_fixed_bytes_is_refused(tmp_path):
    settings = write_json(tmp_path, "unigram")
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(spec | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}})
    )
    tokenizer = prepare_tokenizer(settings, tmp_path / "prepared", TEXTS)
    with pytest.raises(KdError, match=r"^tokenizer.folder: expected a decoder of bytes .* got WordPiece\. Use"):
        tokenizer.token_bytes()


@pytest.mark.extended
def test_two_hundred_thousand_tokens_a_second_and_linear_in_the_length(tokenizers):
    student, teacher = tokenizers["sp_unigram"], tokenizers["byte_level"]
    sides = token_bytes(student), token_bytes(teacher)

    def seconds(text, repeats):
        ids = student.encode(text), teacher.encode(text)
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            assert isinstance(align(*ids, *sides), ChunkEnds)
            times.append(time.perf_counter() - began)
        return min(times), sum(map(len, ids))

    short, count = seconds(" ".join(TEXTS[:3]), 50)
    assert count / short > 200_000
    long, long_count = seconds(" ".join(TEXTS[:100]), 20)
    longer, longer_count = seconds(" ".join(TEXTS[:100] * 8), 10)
    assert longer / long < 1.6 * longer_count / long_count
