"""Translation: tokens that count, sacreBLEU's scores, one and several directions."""

import importlib.util

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from kd_jax.errors import KdError
from kd_jax.tasks.base import Decoding
from kd_jax.tasks.metrics import Outcome
from kd_jax.tasks.translation import Translation, bleu, sacrebleu_metric
from tests.tasks.letters import Letters

RNG = np.random.default_rng(0)
WORDS = ["le", "chat", "noir", "dort", "sur", "un", "toit", "rouge"]
REFERENCES = [" ".join(RNG.choice(WORDS, 8)) for _ in range(60)]
OTHERS = [" ".join(RNG.choice(WORDS, 7)) for _ in range(60)]
HYPOTHESES = [" ".join([*reference.split()[:6], *RNG.choice(WORDS, 2)]) for reference in REFERENCES]
CHINESE = ["我们 喜欢 这只猫。", "房子很大,很旧。", "今天下雨了 OK。"]
CHINESE_HYPOTHESES = ["我们喜欢这只狗。", "房子很大,很新。", "今天下雪了 OK。"]
MULTI = {"source": "text", "target": "written", "direction": "way", "directions": ("en-fr", "fr-zh")}


def outcome(texts, *references):
    return Outcome([{}] * len(texts), texts, list(zip(*references, strict=True)))


def test_every_target_counts_with_its_end_token():
    (encoded,) = Translation().encode({"en": "ab", "fr": "cde"}, Letters())
    assert encoded.prompt.tolist() == [97, 98, 2]
    assert encoded.completion.tolist() == [99, 100, 101, 2]
    assert encoded.counts.tolist() == [False] * 3 + [True] * 4
    (empty,) = Translation(counted="all").encode({"en": "a", "fr": ""}, Letters())
    assert empty.completion.tolist() == [2] and empty.counts.tolist() == [True] * 3


def test_forced_prefix_does_not_count():
    example = {"en": "ab", "fr": "c"}
    (encoded,) = Translation().encode(example, Letters(forced_prefix=(9,)))
    assert encoded.prompt.tolist() == [97, 98, 2] and encoded.completion.tolist() == [9, 99, 2]
    assert encoded.counts.tolist() == [False] * 4 + [True] * 2
    (whole,) = Translation(counted="all").encode(example, Letters(forced_prefix=(9,)))
    assert whole.counts.tolist() == [True] * 3 + [False] + [True] * 2


@pytest.mark.parametrize("task", [Translation(), Translation(**MULTI)])
def test_prompt_alone_has_the_ids_of_prompt_with_completion(task):
    """Trap 14."""
    example = {"en": "ab", "fr": "cde", "text": "ab", "written": "cde", "way": "en-fr"}
    alone = task.encode_prompt(task.prompt(example), Letters())
    assert alone.tolist() == next(task.encode(example, Letters())).prompt.tolist()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"target": "en"}, r"task: expected different fields for source, .*, got en, en\."),
        ({"references": ("fr",)}, r"task: expected different fields for source, .*, got en, fr, fr\."),
        (MULTI | {"direction": "text"}, r"got text, written, text\."),
        ({"direction": "way"}, r"task\.directions: expected it to be set together with task\.direction"),
        (
            MULTI | {"directions": ("en-fr", "de")},
            r"directions: expected two languages such as 'en-fr', got 'de'",
        ),
        (MULTI | {"directions": ("en-",)}, r"task\.directions: expected two languages such as 'en-fr', got 'en-'"),
        (
            MULTI | {"directions": ("en-fr", "en-fr")},
            r"directions: expected each direction once, got en-fr, en-fr",
        ),
        ({"tokenize": "13b"}, r"task\.tokenize: expected one of none, zh, 13a, .*, got '13b'"),
        ({"counted": "prompt"}, r"task\.counted: expected completion or all, got 'prompt'"),
        ({"decoding": Decoding(beam=0)}, r"task\.decoding\.beam: expected an integer in \[1, 1000\], got 0"),
    ],
)
def test_invalid_fields_are_refused(fields, message):
    with pytest.raises(KdError, match=message) as error:
        Translation(**fields).check()
    assert "\n" not in str(error.value)


def test_unknown_direction_of_an_example_is_refused():
    with pytest.raises(KdError, match=r"one of task\.directions \(en-fr, fr-zh\) in the field way, got 'de-fr'"):
        Translation(**MULTI).prompt({"text": "das Haus", "way": "de-fr"})


def test_prompt_without_its_tag_is_refused():
    with pytest.raises(KdError, match=r"expected a language tag at its start, one of <2fr> <2zh>, got 'a house'"):
        Translation(**MULTI).encode_prompt("a house", Letters())


@pytest.mark.skipif(importlib.util.find_spec("MeCab") is not None, reason="MeCab is installed")
def test_missing_tokenizer_is_refused():
    message = r"task\.tokenize: expected BLEU's tokenizer for 'ja' .* pip install sacrebleu\[ja\].*tokenize char"
    with pytest.raises(KdError, match=message) as error:
        Translation(target="ja").check()
    assert "\n" not in str(error.value)
    Translation(target="ja", tokenize="char").check()


@pytest.mark.parametrize("language, tokenizer", [("fr", "13a"), ("zh", "zh"), ("zh_Hans", "zh"), ("written", "13a")])
def test_bleu_has_the_tokenizer_of_the_language(language, tokenizer):
    assert bleu(language, "").tokenizer_signature == tokenizer
    assert bleu(language, "char").tokenizer_signature == "char"


@pytest.mark.parametrize("references", [(REFERENCES,), (REFERENCES, OTHERS)], ids=["one", "two"])
@pytest.mark.parametrize("metric", [BLEU(), CHRF()], ids=["bleu", "chrf"])
def test_metric_equals_sacrebleu_corpus_score(metric, references):
    score = sacrebleu_metric("x", "x", metric).score(outcome(HYPOTHESES, *references), resamples=0)
    assert score.interval is None
    assert score.value == metric.corpus_score(HYPOTHESES, list(references)).score


@given(st.lists(st.tuples(*[st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)] * 3), min_size=1, max_size=6))
def test_metric_equals_sacrebleu_corpus_score_of_random_texts(rows):
    texts, *references = zip(*rows, strict=True)
    for metric in (BLEU(), CHRF()):
        expected = metric.corpus_score(list(texts), [list(texts) for texts in references]).score
        assert sacrebleu_metric("x", "x", metric).score(outcome(texts, *references), resamples=0).value == expected


@pytest.mark.parametrize("metric", [BLEU(), CHRF()], ids=["bleu", "chrf"])
def test_interval_is_close_to_sacrebleu(metric):
    low, high = sacrebleu_metric("x", "x", metric).score(outcome(HYPOTHESES, REFERENCES), resamples=1000).interval
    expected = metric.corpus_score(HYPOTHESES, [REFERENCES], n_bootstrap=1000)
    np.testing.assert_allclose((low + high) / 2, expected._mean, rtol=0.02)
    np.testing.assert_allclose((high - low) / 2, expected._ci, rtol=0.15)


def test_interval_of_a_nearly_empty_set_of_matches():
    """One of forty lines matches, so some resamples have no match, for which sacreBLEU itself raises TypeError."""
    references = ["a b c d e f"] + [f"x y z w v {i}" for i in range(40)]
    for metric in Translation().metrics:
        score = metric.score(outcome(["a b c d e f"] + ["q"] * 40, references), 200)
        low, high = score.interval
        assert 0 <= low < score.value < high < 20
        zero = metric.score(outcome([""] * 41, references), 50)
        assert zero.value == 0 and zero.interval == (0, 0)


def test_bleu_is_the_headline_with_its_signature():
    headline, second = Translation(target="zh", references=("zh_2",)).metrics
    assert (headline.name, second.name) == ("bleu", "chrf")
    assert headline.higher_is_better and "tok:zh" in headline.signature and "nrefs:2" in headline.signature
    score = headline.score(outcome(CHINESE_HYPOTHESES, CHINESE), resamples=0).value
    assert score == sacrebleu.corpus_bleu(CHINESE_HYPOTHESES, [CHINESE], tokenize="zh").score
    assert score > sacrebleu.corpus_bleu(CHINESE_HYPOTHESES, [CHINESE]).score  # with tokenizer 13a


def test_headline_of_several_directions_is_their_mean():
    ways = ["en-fr", "fr-zh"] * 3
    texts, references = REFERENCES[:6], HYPOTHESES[:6]
    texts[1::2], references[1::2] = CHINESE_HYPOTHESES, CHINESE
    several = Outcome([{"way": way} for way in ways], texts, [[reference] for reference in references])
    mean, french, chinese, chrf = Translation(**MULTI).metrics
    assert [metric.name for metric in (mean, french, chinese, chrf)] == ["bleu", "bleu_en_fr", "bleu_fr_zh", "chrf"]
    expected_french = sacrebleu.corpus_bleu(texts[::2], [references[::2]]).score
    expected_chinese = sacrebleu.corpus_bleu(texts[1::2], [references[1::2]], tokenize="zh").score
    assert french.score(several, 0).value == expected_french
    assert chinese.score(several, 0).value == expected_chinese
    np.testing.assert_allclose(mean.score(several, 0).value, (expected_french + expected_chinese) / 2)
    one_way = Outcome([{"way": "en-fr"}] * 3, texts[::2], [[reference] for reference in references[::2]])
    assert mean.score(one_way, 0).value == expected_french  # a direction without examples has no score


def test_tags_name_the_target_language():
    task = Translation(**MULTI)
    assert task.symbols() == ("<2fr>", "<2zh>") and Translation().symbols() == ()
    assert task.prompt({"text": "une maison", "way": "fr-zh"}) == "<2zh> une maison"


def test_similarity_is_sentence_bleu_of_the_target_language():
    french, chinese = Translation().similarity, Translation(target="zh").similarity
    assert french(HYPOTHESES[0], REFERENCES[0]) == sacrebleu.sentence_bleu(HYPOTHESES[0], [REFERENCES[0]]).score
    assert french(REFERENCES[0], REFERENCES[0]) > french(HYPOTHESES[0], REFERENCES[0])
    expected = sacrebleu.sentence_bleu(CHINESE_HYPOTHESES[0], [CHINESE[0]], tokenize="zh").score
    assert chinese(CHINESE_HYPOTHESES[0], CHINESE[0]) == expected > 0
