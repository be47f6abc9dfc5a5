"""Language codes as corpora write them: each metric chooses its words rightly, or refuses."""

import importlib.util

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from kd_jax.errors import KdError
from kd_jax.tasks.generation import Generation, first_words
from kd_jax.tasks.languages import bleu_tokenizer
from kd_jax.tasks.metrics import Outcome, rouge, rouge_f
from kd_jax.tasks.summarization import lead
from kd_jax.tasks.translation import Translation

CHINESE = ["我们非常喜欢这只黑色的猫。", "这座房子很大,也很旧。", "今天北京下了一场大雨。"]
HYPOTHESES = ["我们非常喜欢这只黑色的狗。", "这座房子很大,也很新。", "今天上海下了一场大雪。"]
# sacreBLEU's README: zh, ja-mecab and ko-mecab for their languages, spBLEU where it has no tokenizer, else 13a.
CODES = {
    "zh": "zh zho chi cmn yue ZH zh-CN zh_TW zh-Hant zh-Hans-CN zho_Hans zho_Hant yue_Hant cmn_Hani chinese zh_text",
    "ja-mecab": "ja jpn JA ja-JP ja_JP.UTF-8 jpn_Jpan japanese",
    "ko-mecab": "ko kor ko-KR kor_Hang ko_Kore korean",
    "flores200": "th tha th-TH tha_Thai my mya bur mya_Mymr shn_Mymr km khm_Khmr lo lao lao_Laoo bo bod dz dzo_Tibt",
    "13a": "fr fra fre fr-CA pt-BR eng_Latn rus_Cyrl arb_Arab uzb_Cyrl zh-Latn-pinyin target translation",
}


def outcome(texts, references, examples=None):
    return Outcome(examples or [{}] * len(texts), texts, [[reference] for reference in references])


@pytest.mark.parametrize("tokenizer, code", [(name, code) for name, codes in CODES.items() for code in codes.split()])
def test_bleu_has_the_tokenizer_of_the_language(tokenizer, code):
    assert bleu_tokenizer(code) == tokenizer


@pytest.mark.parametrize("code", ["zh", "zh-CN", "zho_Hans", "cmn_Hant", "Chinese"])
def test_bleu_of_chinese_is_sacrebleus(code):
    headline = Translation("en", code).metrics[0]
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [CHINESE], tokenize="zh").score
    assert headline.score(outcome(HYPOTHESES, CHINESE), 0).value == expected > 50
    assert headline.score(outcome(CHINESE, CHINESE), 0).value == pytest.approx(100)
    assert "tok:zh" in headline.signature
    assert sacrebleu.corpus_bleu(HYPOTHESES, [CHINESE]).score < 10  # with 13a, the default of every other language


@pytest.mark.parametrize("code", ["target", "cn", "translation"])
@pytest.mark.parametrize("text", [CHINESE, ["これは猫です。"], ["ฉันรักแมวตัวนี้"], ["ငါသည်ကြောင်ကိုချစ်"], ["ខ្ញុំស្រឡាញ់ឆ្មា"]])
def test_bleu_of_a_name_that_is_no_language_refuses_text_without_blanks(code, text):
    with pytest.raises(KdError, match=rf"^task\.tokenize: .* got 13a, .*{code}.*Set --task\.tokenize to zh"):
        Translation("en", code).metrics[0].score(outcome(text, text), 0)
    chosen = Translation("en", code, tokenize="char").metrics[0]
    assert chosen.score(outcome(text, text), 0).value == pytest.approx(100)


@pytest.mark.parametrize(
    "text",
    [["une maison bleue et une verte"], ["안녕 하세요 여러분 반갑습니다"], ["я вижу GPU 漢字 и 42 дома"], ["42"]],
)
def test_bleu_of_text_with_blanks_needs_no_language(text):
    metric = Translation("en", "target").metrics[0]
    assert metric.score(outcome(text, text), 0).value == sacrebleu.corpus_bleu(text, [text]).score


@pytest.mark.skipif(importlib.util.find_spec("MeCab") is not None, reason="MeCab is installed")
def test_a_tokenizer_that_is_not_installed_is_refused_with_the_remedy():
    with pytest.raises(KdError, match=r"^task\.tokenize: .*'jpn_Jpan' .*pip install sacrebleu\[ja\].*tokenize char"):
        Translation("en", "jpn_Jpan").check()
    Translation("en", "jpn_Jpan", tokenize="char").check()


def test_each_direction_has_its_own_tokenizer():
    task = Translation("text", "written", direction="way", directions=("en-fr", "en-zho_Hans"))
    ways = [{"way": "en-fr"}, *[{"way": "en-zho_Hans"}] * 3]
    one = outcome(["une maison bleue", *HYPOTHESES], ["une maison bleue", *CHINESE], ways)
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [CHINESE], tokenize="zh").score
    assert task.metrics[2].score(one, 0).value == expected
    wrong = Translation("text", "written", direction="way", directions=("en-fr", "en-cn"))
    with pytest.raises(KdError, match="got 13a, which the language 'cn' has by default"):
        wrong.metrics[0].score(one._replace(examples=[{"way": "en-fr"}, *[{"way": "en-cn"}] * 3]), 0)
    same, other = (task.similarity(text, CHINESE[0]) for text in (CHINESE[0], HYPOTHESES[0]))
    assert same == pytest.approx(100) and 50 < other < 100
    assert other == sacrebleu.sentence_bleu(HYPOTHESES[0], [CHINESE[0]], tokenize="char").score


@pytest.mark.parametrize(
    "text",
    [
        "我们非常喜欢这只猫",
        "Мы любим кошек",
        "نحن نحب القطط",
        "हम बिल्लियों से प्यार करते हैं",
        "ฉันรักแมว",
        "고양이를 좋아해요",
        "Αγαπώ",
    ],
)
@pytest.mark.parametrize("language", ["en", "eng_Latn", "zh", "ru", "other"])
def test_rouge_of_identical_text_is_100_in_every_script(text, language):
    for kind in ("L", "1"):
        assert rouge(kind, language).score(outcome([text], [text]), 0).value == 100


@given(st.lists(st.sampled_from(["the", "cats", "café", "3.5", "GPU", "mats,", "naïve"]), min_size=1).map(" ".join))
def test_rouge_of_english_is_rouge_scores(reference):
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(reference, "the cat on 3 mats")["rougeL"].fmeasure
    for language in ("en", "en-GB", "EN", "eng_Latn"):
        assert rouge_f("L", language, "the cat on 3 mats", [reference]) == 100 * expected


def test_rouge_of_russian_counts_words():
    """Two of three words in order, by hand: precision and recall 2/3."""
    assert rouge_f("L", "en", "кошка спит дома", ["кошка сидит дома"]) == pytest.approx(200 / 3)


def test_generation_counts_characters_of_scripts_without_blanks():
    task = Generation(prompt_words=2, compared_words=4)
    example = {"text": "我愛你我愛他"}
    assert task.prompt(example) == "我愛" and task.references_of(example) == ["你我愛他"]
    distinct = task.metrics[2]
    # Bigrams of 我愛我愛: 我愛, 愛我, 我愛; two of three are new.
    assert distinct.name == "distinct_2"
    assert distinct.score(outcome(["我愛我愛"], ["你我愛他"]), 0).value == pytest.approx(2 / 3)
    assert first_words("one two three", 2) == "one two"


def test_first_sentence_in_other_scripts():
    texts = {
        "真的吗？是。": "真的吗？",
        "यह है। वह था।": "यह है।",
        "هل هذا؟ نعم.": "هل هذا؟",
        "နေကောင်းလား။ကောင်း။": "နေကောင်းလား။",
    }
    for document, first in texts.items():
        assert lead(document, 1) == first
