"""Language codes and scripts: which words have blanks between them, and which tokenizer BLEU needs."""

import re
from collections.abc import Iterable

import regex

# Scripts without blanks between words; ROUGE counts their characters.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
LETTERS = regex.compile(r"[\p{L}\p{M}\p{N}]")
UNSPACED_LETTER = regex.compile(f"[{UNSPACED}]")
WORD = regex.compile(rf"(?=[{UNSPACED}])\X|[\S--[{UNSPACED}]]+", regex.V1)
# BLEU's tokenizer as sacreBLEU recommends it -> ISO 15924 scripts, then ISO 639 codes and English names of languages.
# Every other language has 13a.
TOKENIZERS = {
    "13a": ("latn cyrl arab", ""),  # "zh_Latn" is written with blanks
    "zh": ("hans hant hani", "zh zho chi cmn yue wuu gan hsn lzh chinese mandarin cantonese"),
    "ja-mecab": ("jpan hira kana hrkt", "ja jpn japanese"),
    "ko-mecab": ("kore hang", "ko kor korean"),
    "flores200": (
        "thai mymr khmr laoo tibt",
        "th tha thai my mya bur shn mnw ksw burmese km khm khmer lo lao bo bod tib tibetan dz dzo dzongkha",
    ),
}
OF_SCRIPT = {script: name for name, (scripts, _) in TOKENIZERS.items() for script in scripts.split()}
OF_LANGUAGE = {language: name for name, (_, languages) in TOKENIZERS.items() for language in languages.split()}


def bleu_tokenizer(language: str) -> str:
    """Return the name of sacreBLEU's tokenizer for a language; a script in the code decides before the language.

    Args:
      language: a code of ISO 639-1 or -3, BCP 47 ("zh-Hant-TW"), FLORES ("zho_Hans"), a locale ("ja_JP") or an
        English name, in any case. Anything else, such as "target", means 13a.

    Examples:
      >>> [bleu_tokenizer(code) for code in ("fr", "zh-CN", "jpn_Jpan", "KO", "tha_Thai", "zh-Latn-pinyin")]
      ['13a', 'zh', 'ja-mecab', 'ko-mecab', 'flores200', '13a']
    """
    first, *others = re.split(r"[-_.@ ]+", language.strip().lower())
    scripts = [OF_SCRIPT[part] for part in others if part in OF_SCRIPT]
    return scripts[0] if scripts else OF_LANGUAGE.get(first, "13a")


def is_english(language: str) -> bool:
    """Return whether a code means English: "en", "eng", "en-GB", "eng_Latn".

    Examples:
      >>> [is_english(code) for code in ("EN_us", "eng_Latn", "enm", "fr")]
      [True, True, False, False]
    """
    return re.split(r"[-_.@ ]+", language.strip().lower())[0] in ("en", "eng", "english")


def is_unspaced(texts: Iterable[str]) -> bool:
    """Return whether most letters and digits of the texts are of scripts without blanks between words.

    Examples:
      >>> is_unspaced(["我愛 Python!"]), is_unspaced(["안녕 하세요"]), is_unspaced(["42"])
      (False, False, False)
      >>> is_unspaced(["我非常喜歡這隻貓", "GPU"])
      True
    """
    joined = "\n".join(texts)
    return 2 * len(UNSPACED_LETTER.findall(joined)) > len(LETTERS.findall(joined))


def split_words(text: str) -> list[str]:
    """Return the words of a text between blanks; each character of a script without blanks is a word.

    Examples:
      >>> split_words("the cat, 我愛你。")
      ['the', 'cat,', '我', '愛', '你', '。']
    """
    return WORD.findall(text) if UNSPACED_LETTER.search(text) else text.split()
