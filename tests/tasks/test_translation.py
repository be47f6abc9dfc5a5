"""The task: what counts is said here once; scores are sacreBLEU's, one way or several."""

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
CHINESE_WRITTEN = ["我们喜欢这只狗。", "房子很大,很新。", "今天下雪了 OK。"]
MULTI = {"source": "text", "target": "written", "direction": "way", "directions": ("en-fr", "fr-zh")}


def outcome(texts, *references):
    return Outcome([{}] * len(texts), texts, list(zip(*references, strict=True)))


def test_every_target_counts_the_end_included():
    (encoded,) = Translation().encode({"en": "ab", "fr": "cde"}, Letters())
    assert encoded.prompt.tolist() == [97, 98, 2]
    assert encoded.completion.tolist() == [99, 100, 101, 2]
    assert encoded.counts.tolist() == [False] * 3 + [True] * 4
    (empty,) = Translation(counted="all").encode({"en": "a", "fr": ""}, Letters())
    assert empty.completion.tolist() == [2] and empty.counts.tolist() == [True] * 3


def test_what_is_given_to_every_completion_does_not_count():
    example = {"en": "ab", "fr": "c"}
    (encoded,) = Translation().encode(example, Letters(forced_prefix=(9,)))
    assert encoded.prompt.tolist() == [97, 98, 2] and encoded.completion.tolist() == [9, 99, 2]
    assert encoded.counts.tolist() == [False] * 4 + [True] * 2
    (whole,) = Translation(counted="all").encode(example, Letters(forced_prefix=(9,)))
    assert whole.counts.tolist() == [True] * 3 + [False] + [True] * 2


@pytest.mark.parametrize("task", [Translation(), Translation(**MULTI)])
def test_a_prompt_alone_is_encoded_as_with_its_completion(task):
    """Trap 14."""
    example = {"en": "ab", "fr": "cde", "text": "ab", "written": "cde", "way": "en-fr"}
    alone = task.encode_prompt(task.prompt(example), Letters())
    assert alone.tolist() == next(task.encode(example, Letters())).prompt.tolist()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"target": "en"}, r"task: source, .* are en, en; wanted no name twice"),
        ({"references": ("fr",)}, r"task: source, .* are en, fr, fr; wanted no name twice"),
        (MULTI | {"direction": "text"}, r"are text, written, text; wanted no name twice"),
        ({"direction": "way"}, r"task\.directions: wanted beside task\.direction, such as .*; or neither"),
        (MULTI | {"directions": ("en-fr", "de")}, r"task\.directions: 'de'; wanted two languages, such as 'en-fr'"),
        (MULTI | {"directions": ("en-",)}, r"task\.directions: 'en-'; wanted two languages"),
        (MULTI | {"directions": ("en-fr", "en-fr")}, r"task\.directions: en-fr, en-fr; wanted each once"),
        ({"tokenize": "13b"}, r"task\.tokenize: '13b'; wanted one of none, zh, 13a, .*"),
        ({"counted": "prompt"}, r"task\.counted: 'prompt'; wanted completion or all"),
        ({"decoding": Decoding(beam=0)}, r"task\.decoding\.beam: 0; wanted a whole number of at least 1"),
    ],
)
def test_what_does_not_fit_is_told(fields, message):
    with pytest.raises(KdError, match=message) as error:
        Translation(**fields).check()
    assert "\n" not in str(error.value)


def test_a_direction_that_is_not_named_is_told():
    with pytest.raises(KdError, match=r"an example's way is 'de-fr'; task\.directions has en-fr, fr-zh: name it there"):
        Translation(**MULTI).prompt({"text": "das Haus", "way": "de-fr"})


def test_a_prompt_without_its_tag_is_told():
    with pytest.raises(KdError, match=r"'a house': no language tag; wanted one in front: <2fr> <2zh>"):
        Translation(**MULTI).encode_prompt("a house", Letters())


@pytest.mark.skipif(importlib.util.find_spec("MeCab") is not None, reason="it is installed")
def test_a_tokeniser_that_is_not_installed_is_told():
    wanted = r"task\.tokenize: BLEU's tokeniser for 'ja' cannot be had: .* pip install sacrebleu\[ja\]; or --task\.tok"
    with pytest.raises(KdError, match=wanted) as error:
        Translation(target="ja").check()
    assert "\n" not in str(error.value)
    Translation(target="ja", tokenize="char").check()


@pytest.mark.parametrize("language, tokenizer", [("fr", "13a"), ("zh", "zh"), ("zh_Hans", "zh"), ("written", "13a")])
def test_bleu_takes_the_languages_tokeniser(language, tokenizer):
    assert bleu(language, "").tokenizer_signature == tokenizer
    assert bleu(language, "char").tokenizer_signature == "char"


@pytest.mark.parametrize("references", [(REFERENCES,), (REFERENCES, OTHERS)], ids=["one", "two"])
@pytest.mark.parametrize("metric", [BLEU(), CHRF()], ids=["bleu", "chrf"])
def test_sums_of_statistics_give_sacrebleus_corpus_score(metric, references):
    score = sacrebleu_metric("x", "x", metric).score(outcome(HYPOTHESES, *references), resamples=0)
    assert score.interval is None
    assert score.value == metric.corpus_score(HYPOTHESES, list(references)).score


@given(st.lists(st.tuples(*[st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)] * 3), min_size=1, max_size=6))
def test_sums_of_statistics_give_the_corpus_score_of_any_texts(rows):
    texts, *references = zip(*rows, strict=True)
    for metric in (BLEU(), CHRF()):
        theirs = metric.corpus_score(list(texts), [list(one) for one in references]).score
        assert sacrebleu_metric("x", "x", metric).score(outcome(texts, *references), resamples=0).value == theirs


@pytest.mark.parametrize("metric", [BLEU(), CHRF()], ids=["bleu", "chrf"])
def test_the_interval_is_near_sacrebleus_own(metric):
    low, high = sacrebleu_metric("x", "x", metric).score(outcome(HYPOTHESES, REFERENCES), resamples=1000).interval
    theirs = metric.corpus_score(HYPOTHESES, [REFERENCES], n_bootstrap=1000)
    np.testing.assert_allclose((low + high) / 2, theirs._mean, rtol=0.02)
    np.testing.assert_allclose((high - low) / 2, theirs._ci, rtol=0.15)


def test_a_nearly_dead_model_is_scored():
    """One line of forty is right, so some resamples hold nothing right: sacreBLEU mixes types and raised TypeError."""
    references = ["a b c d e f"] + [f"x y z w v {i}" for i in range(40)]
    for metric in Translation().metrics:
        score = metric.score(outcome(["a b c d e f"] + ["q"] * 40, references), 200)
        low, high = score.interval
        assert 0 <= low < score.value < high < 20
        dead = metric.score(outcome([""] * 41, references), 50)
        assert dead.value == 0 and dead.interval == (0, 0)


def test_bleu_is_the_headline_and_says_how_it_was_computed():
    headline, second = Translation(target="zh", references=("zh_2",)).metrics
    assert (headline.name, second.name) == ("bleu", "chrf")
    assert headline.higher_is_better and "tok:zh" in headline.signature and "nrefs:2" in headline.signature
    scored = headline.score(outcome(CHINESE_WRITTEN, CHINESE), resamples=0).value
    assert scored == sacrebleu.corpus_bleu(CHINESE_WRITTEN, [CHINESE], tokenize="zh").score
    assert scored > sacrebleu.corpus_bleu(CHINESE_WRITTEN, [CHINESE]).score  # in words of 13a


def test_of_several_directions_the_headline_is_their_mean():
    ways = ["en-fr", "fr-zh"] * 3
    texts, references = REFERENCES[:6], HYPOTHESES[:6]
    texts[1::2], references[1::2] = CHINESE_WRITTEN, CHINESE
    several = Outcome([{"way": way} for way in ways], texts, [[reference] for reference in references])
    mean, french, chinese, chrf = Translation(**MULTI).metrics
    assert [metric.name for metric in (mean, french, chinese, chrf)] == ["bleu", "bleu_en_fr", "bleu_fr_zh", "chrf"]
    expected_french = sacrebleu.corpus_bleu(texts[::2], [references[::2]]).score
    expected_chinese = sacrebleu.corpus_bleu(texts[1::2], [references[1::2]], tokenize="zh").score
    assert french.score(several, 0).value == expected_french
    assert chinese.score(several, 0).value == expected_chinese
    np.testing.assert_allclose(mean.score(several, 0).value, (expected_french + expected_chinese) / 2)
    one_way = Outcome([{"way": "en-fr"}] * 3, texts[::2], [[reference] for reference in references[::2]])
    assert mean.score(one_way, 0).value == expected_french  # what has no examples has no score, rather than 0


def test_tags_name_the_language_to_write():
    task = Translation(**MULTI)
    assert task.symbols() == ("<2fr>", "<2zh>") and Translation().symbols() == ()
    assert task.prompt({"text": "une maison", "way": "fr-zh"}) == "<2zh> une maison"


def test_closeness_ranks_texts_by_sentence_bleu_in_the_targets_words():
    french, chinese = Translation().closeness, Translation(target="zh").closeness
    assert french(HYPOTHESES[0], REFERENCES[0]) == sacrebleu.sentence_bleu(HYPOTHESES[0], [REFERENCES[0]]).score
    assert french(REFERENCES[0], REFERENCES[0]) > french(HYPOTHESES[0], REFERENCES[0])
    theirs = sacrebleu.sentence_bleu(CHINESE_WRITTEN[0], [CHINESE[0]], tokenize="zh").score
    assert chinese(CHINESE_WRITTEN[0], CHINESE[0]) == theirs > 0
