"""Generation: windows, prompts that are prefixes of their texts, and metrics of diversity."""

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
from kd_jax.tokenizers.sentencepiece import SentencePiece, SentencePieceTokenizer
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


def to_outcome(texts, references):
    return Outcome([{}] * len(texts), texts, [[reference] for reference in references])


def value(name, texts, references=None):
    (metric,) = [metric for metric in Generation().metrics if metric.name == name]
    return metric.score(to_outcome(texts, references or texts), 0).value


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 11))
def test_windows_count_every_token_once(tokens, window, context):
    """Trap 15."""
    context = min(context, window - 1)
    ids_N, start = np.arange(tokens, dtype=np.int32), 0
    for part in windows(ids_N, window, context):
        row, stop = np.concatenate([part.prompt, part.completion]), start + len(part.completion)
        assert row.tolist() == list(range(start - min(start, context), stop))  # with its context
        assert row[part.counts].tolist() == list(range(start, stop)) and 0 < len(row) <= window
        start = stop
    assert start == tokens


def test_short_text_is_one_window_with_its_end_token():
    (one,) = Generation(window=4, context=1).encode({"text": "abc"}, Letters())
    assert one.prompt.tolist() == [] and one.completion.tolist() == [97, 98, 99, 2] and one.counts.all()
    parts = list(Generation(window=4, context=1).encode({"text": "abcd"}, Letters()))
    assert [len(part.completion) for part in parts] == [4, 1] and parts[1].completion.tolist() == [2]


@given(text=TEXTS, count=st.integers(0, 13))
def test_ids_of_a_prompt_are_the_first_ids_of_its_text(tokenizer, text, count):
    """Trap 14."""
    task = Generation(prompt_words=count)
    prompt = task.encode_prompt(task.prompt({"text": text}), tokenizer)
    assert prompt.tolist() == tokenizer.encode(text)[: len(prompt)]
    assert tokenizer.decode(prompt.tolist()).split() == text.split()[:count]


PARTS = ["fox", "es", "runn", "ing", "é", "漢", *" \n\t\v\x1c\x85\u00a0\u200b\u2028\u3000"]


@given(text=st.lists(st.sampled_from(PARTS), max_size=20).map("".join), count=st.integers(0, 5))
def test_ids_of_a_prompt_with_unknown_characters_and_other_whitespace(tokenizer, text, count):
    task = Generation(prompt_words=count)
    prompt = task.encode_prompt(task.prompt({"text": text}), tokenizer)
    assert prompt.tolist() == tokenizer.encode(text)[: len(prompt)]


@given(st.text(st.sampled_from("ab \n"), max_size=20), st.integers(0, 5), st.integers(1, 5))
def test_prompt_and_reference_are_consecutive_words_of_the_text(text, prompt_words, compared_words):
    task = Generation(prompt_words=prompt_words, compared_words=compared_words)
    prompt, (reference,) = task.prompt({"text": text}), task.references_of({"text": text})
    assert prompt.split() == text.split()[:prompt_words]
    assert reference.split() == text.split()[prompt_words : prompt_words + compared_words]
    assert text.startswith(prompt) and reference in text and reference == reference.strip()
    assert task.baselines["real_text"]({"text": text}) == reference
    assert first_words(text, 99) == text.rstrip()


def test_continuations_of_texts_that_are_all_prompt_do_not_count():
    task = Generation(prompt_words=3)
    assert task.prompt({"text": "a b"}) == "a b" and task.references_of({"text": "a b"}) == [""]
    for name in ("distinct_2", "repetition", "self_bleu"):
        assert value(name, ["x x x x x x"], [""]) == 0
        others = ["a b c d e a b", "a b x"]
        assert value(name, [*others, "y y y y y"], [*others, ""]) == value(name, others)


@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_distinct_and_repetition_of_a_set(texts):
    bigrams = [pair for text in texts for pair in itertools.pairwise(text.split())]
    assert value("distinct_2", texts) == (len(set(bigrams)) / len(bigrams) if bigrams else 0)
    fourgrams = [[tuple(text.split()[i : i + 4]) for i in range(len(text.split()) - 3)] for text in texts]
    total, unique = sum(map(len, fourgrams)), sum(len(set(grams)) for grams in fourgrams)
    assert value("repetition", texts) == pytest.approx(1 - unique / total if total else 0)


def test_texts_are_truncated_to_the_length_of_their_references():
    long, short = "a b c d a b c d a b c d", "a b c d"
    assert value("distinct_2", [long], [short]) == 1 > value("distinct_2", [long])
    assert value("repetition", [long], [short]) == 0 < value("repetition", [long])


def test_self_bleu_is_mean_bleu_against_other_texts():
    texts = ["the fox ran away again", "the fox ran home at night", "a cat sat on the mat", ""]
    others = [[other for other in texts if other and other != text] for text in texts]
    scores = [
        sacrebleu.sentence_bleu(text, other, tokenize="none").score
        for text, other in zip(texts[:3], others, strict=False)
    ]
    assert value("self_bleu", texts) == pytest.approx(np.mean(scores))
    assert value("self_bleu", ["a b c d e"] * 50) == pytest.approx(100)
    assert value("self_bleu", ["a b c d e"]) == 0  # no other texts


@pytest.mark.parametrize("count", [2, 33, 34, 50, 200])
def test_self_bleu_excludes_the_text_itself(count, monkeypatch):
    """The texts share no word, so a text would score only against itself."""
    texts = [f"a{i} b{i} c{i} d{i}" for i in range(count)]
    assert value("self_bleu", texts) == 0
    calls = []
    score = generation.BLEU.sentence_score
    monkeypatch.setattr(generation.BLEU, "sentence_score", lambda self, x, ys: calls.append(ys) or score(self, x, ys))
    value("self_bleu", texts)
    assert {len(set(ys)) for ys in calls} == {min(count - 1, generation.MAX_OTHERS)}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"window": 0}, r"task\.window: expected an integer in \[1, \d+\], got 0"),
        ({"context": -1}, r"task\.context: expected an integer in \[0, \d+\], got -1"),
        ({"window": 8, "context": 8}, r"task\.context: expected less than task\.window, which is 8, got 8"),
        ({"prompt_words": 1.5}, r"task\.prompt_words: expected an integer in \[0, \d+\], got 1\.5"),
        ({"compared_words": 0}, r"task\.compared_words: expected an integer in \[1, \d+\], got 0"),
    ],
)
def test_invalid_fields_are_refused(fields, message):
    with pytest.raises(KdError, match=message):
        Generation(**fields).check()


@pytest.mark.parametrize("text", ["", "  \n"])
def test_text_without_tokens_is_refused(tokenizer, text):
    with pytest.raises(KdError, match=r"source: expected text in the field text of every example, got '"):
        list(Generation().encode({"text": text}, tokenizer))


def test_decoder_only_task_with_bits_per_byte_as_headline():
    task = Generation()
    task.check()
    assert task.families == ("decoder_only",) and not task.prompted and task.decoding.ways == ("sampled",)
    directions = {metric.name: metric.higher_is_better for metric in task.metrics}
    expected = {"bits_per_byte": False, "perplexity": False, "distinct_2": None, "repetition": None, "self_bleu": None}
    assert list(directions.items()) == list(expected.items())
