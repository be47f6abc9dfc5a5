"""The task: every token counts once, prompts begin texts token by token, and diversity is measured at one length."""

import itertools

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.tasks import generation
from kd_jax.tasks.generation import Generation, first_words, windows
from kd_jax.tasks.metrics import Outcome
from kd_jax.tokenizers.sentencepiece import SentencePieceTokenizer, SentencePiece
from tests.tasks.letters import Letters

WORDS = ["the", "fox", "foxes", "ran", "running", "quickly", "away", "été", "(again),", "42"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 9)) for _ in range(200)]
    SentencePiece(vocab_size=40, model_type=request.param).prepare(lines, path.parent)
    return SentencePieceTokenizer(path)


def measured(texts, references):
    return Outcome([{}] * len(texts), texts, [[reference] for reference in references])


def value(name, texts, references=None):
    (metric,) = [metric for metric in Generation().metrics if metric.name == name]
    return metric.score(measured(texts, references or texts), 0).value


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 11))
def test_every_token_counts_once_and_has_its_context(tokens, window, context):
    """Trap 15."""
    context = min(context, window - 1)
    ids_N, start = np.arange(tokens, dtype=np.int32), 0
    for one in windows(ids_N, window, context):
        row, stop = np.concatenate([one.prompt, one.completion]), start + len(one.completion)
        assert row.tolist() == list(range(start - min(start, context), stop))  # what stands before, unbroken
        assert row[one.counts].tolist() == list(range(start, stop)) and 0 < len(row) <= window
        start = stop
    assert start == tokens


def test_a_text_within_the_window_is_one_with_its_end():
    (one,) = Generation(window=4, context=1).encode({"text": "abc"}, Letters())
    assert one.prompt.tolist() == [] and one.completion.tolist() == [97, 98, 99, 2] and one.counts.all()
    cut = list(Generation(window=4, context=1).encode({"text": "abcd"}, Letters()))
    assert [len(one.completion) for one in cut] == [4, 1] and cut[1].completion.tolist() == [2]


@given(text=TEXTS, count=st.integers(0, 13))
def test_a_prompt_begins_the_text_token_by_token(tokenizer, text, count):
    """Trap 14."""
    task = Generation(prompt_words=count)
    prompt = task.encode_prompt(task.prompt({"text": text}), tokenizer)
    assert prompt.tolist() == tokenizer.encode(text)[: len(prompt)]
    assert tokenizer.decode(prompt.tolist()).split() == text.split()[:count]


PARTS = ["fox", "es", "runn", "ing", "é", "漢", *" \n\t\v\x1c\x85\u00a0\u200b\u2028\u3000"]


@given(text=st.lists(st.sampled_from(PARTS), max_size=20).map("".join), count=st.integers(0, 5))
def test_so_it_does_with_unknown_letters_and_other_blanks(tokenizer, text, count):
    task = Generation(prompt_words=count)
    prompt = task.encode_prompt(task.prompt({"text": text}), tokenizer)
    assert prompt.tolist() == tokenizer.encode(text)[: len(prompt)]


@given(st.text(st.sampled_from("ab \n"), max_size=20), st.integers(0, 5), st.integers(1, 5))
def test_prompt_and_reference_are_the_texts_words_as_they_stand(text, given_words, compared_words):
    task = Generation(prompt_words=given_words, compared_words=compared_words)
    prompt, (reference,) = task.prompt({"text": text}), task.references_of({"text": text})
    assert prompt.split() == text.split()[:given_words]
    assert reference.split() == text.split()[given_words : given_words + compared_words]
    assert text.startswith(prompt) and reference in text and reference == reference.strip()
    assert task.baselines["real_text"]({"text": text}) == reference
    assert first_words(text, 99) == text.rstrip()


def test_what_is_written_behind_a_text_that_is_all_prompt_is_not_measured():
    task = Generation(prompt_words=3)
    assert task.prompt({"text": "a b"}) == "a b" and task.references_of({"text": "a b"}) == [""]
    for name in ("distinct_2", "repetition", "self_bleu"):
        assert value(name, ["x x x x x x"], [""]) == 0
        beside = ["a b c d e a b", "a b x"]
        assert value(name, [*beside, "y y y y y"], [*beside, ""]) == value(name, beside)


@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_distinct_and_repetition_are_those_of_the_whole_set(texts):
    bigrams = [pair for text in texts for pair in itertools.pairwise(text.split())]
    assert value("distinct_2", texts) == (len(set(bigrams)) / len(bigrams) if bigrams else 0)
    fourgrams = [[tuple(text.split()[i : i + 4]) for i in range(len(text.split()) - 3)] for text in texts]
    total, unique = sum(map(len, fourgrams)), sum(len(set(one)) for one in fourgrams)
    assert value("repetition", texts) == pytest.approx(1 - unique / total if total else 0)


def test_texts_are_measured_at_their_references_length():
    long, short = "a b c d a b c d a b c d", "a b c d"
    assert value("distinct_2", [long], [short]) == 1 > value("distinct_2", [long])
    assert value("repetition", [long], [short]) == 0 < value("repetition", [long])


def test_self_bleu_is_the_mean_of_bleu_against_the_others():
    texts = ["the fox ran away again", "the fox ran home at night", "a cat sat on the mat", ""]
    others = [[other for other in texts if other and other != text] for text in texts]
    scores = [
        sacrebleu.sentence_bleu(text, other, tokenize="none").score
        for text, other in zip(texts[:3], others, strict=False)
    ]
    assert value("self_bleu", texts) == pytest.approx(np.mean(scores))
    assert value("self_bleu", ["a b c d e"] * 50) == pytest.approx(100)
    assert value("self_bleu", ["a b c d e"]) == 0  # there are no others


@pytest.mark.parametrize("count", [2, 33, 34, 50, 200])
def test_self_bleu_compares_with_few_and_never_with_itself(count, monkeypatch):
    """Texts share no word, so that a text would score only against itself."""
    texts = [f"a{i} b{i} c{i} d{i}" for i in range(count)]
    assert value("self_bleu", texts) == 0
    held = []
    score = generation.BLEU.sentence_score
    monkeypatch.setattr(generation.BLEU, "sentence_score", lambda self, x, ys: held.append(ys) or score(self, x, ys))
    value("self_bleu", texts)
    assert {len(set(ys)) for ys in held} == {min(count - 1, generation.OTHERS)}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"window": 0}, r"task\.window: 0; wanted a whole number of at least 1"),
        ({"context": -1}, r"task\.context: -1; wanted a whole number of at least 0"),
        ({"window": 8, "context": 8}, r"task\.context: 8, in a window of 8; wanted less than task\.window"),
        ({"prompt_words": 1.5}, r"task\.prompt_words: 1\.5; wanted a whole number of at least 0"),
        ({"compared_words": 0}, r"task\.compared_words: 0; wanted a whole number of at least 1"),
    ],
)
def test_what_is_out_of_range_is_told(fields, message):
    with pytest.raises(KdError, match=message):
        Generation(**fields).check()


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_text_without_tokens_is_told(tokenizer, text):
    with pytest.raises(KdError, match=r"source: an example's text is '.*', no tokens; leave it out"):
        list(Generation().encode({"text": text}, tokenizer))


def test_only_decoders_serve_it_and_the_headline_is_bits_per_byte():
    task = Generation()
    task.check()
    assert task.families == ("decoder_only",) and not task.prompted and task.decoding.ways == ("sampled",)
    directions = {metric.name: metric.higher_is_better for metric in task.metrics}
    expected = {"bits_per_byte": False, "perplexity": False, "distinct_2": None, "repetition": None, "self_bleu": None}
    assert list(directions.items()) == list(expected.items())
