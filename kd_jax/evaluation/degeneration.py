"""Does a model write rubbish? Loops, lengths and empty texts, beside the references."""

from collections.abc import Sequence

NGRAM = 4  # characters, not words: a loop inside a word counts, and so do scripts without spaces
REPETITION_EXCESS = 0.15  # above the references' own share, which long texts and refrains have too
LENGTH_RATIO = (0.67, 1.5)


def repetition(texts: Sequence[str], n: int = NGRAM) -> float:
    """The share of character n-grams that stand earlier in the same text: rep-n over a corpus, in [0, 1].

    .. math:: 1 - \\frac{\\sum_i |\\mathrm{unique\\ n\\text{-}grams}_i|}{\\sum_i |\\mathrm{n\\text{-}grams}_i|}

    Args:
      texts: one text each.
      n: characters in an n-gram.

    Returns:
      0 where no text has n characters.

    References:
      Welleck et al. 2020, arXiv 1908.04319, section 6 (there over tokens).

    Examples:
      >>> repetition(["abcabc"], n=3)
      0.25
    """
    ngrams = [[text[i : i + n] for i in range(len(text) - n + 1)] for text in texts]
    total = sum(map(len, ngrams))
    return 1 - sum(len(set(one)) for one in ngrams) / total if total else 0.0


def length_ratio(texts: Sequence[str], references: Sequence[str]) -> float:
    """Characters written for each character of the references; 1 where the references are all empty.

    Args:
      texts, references: one text each, in the same order.

    Examples:
      >>> length_ratio(["ab", "c"], ["abcd", "ef"])
      0.5
    """
    wanted = sum(map(len, references))
    return sum(map(len, texts)) / wanted if wanted else 1.0


def empty_texts(texts: Sequence[str], references: Sequence[str]) -> int:
    """How many texts say nothing where the reference says something.

    Args:
      texts, references: one text each, in the same order.

    Examples:
      >>> empty_texts(["", " ", "a"], ["a", "", "a"])
      1
    """
    return sum(not text.strip() and bool(ref.strip()) for text, ref in zip(texts, references, strict=True))


def warnings(texts: Sequence[str], references: Sequence[str]) -> list[str]:
    """One line for each way in which the texts are rubbish; none for texts like the references.

    Args:
      texts, references: one text each, in the same order.

    Examples:
      >>> warnings(["", "a cat"], ["a dog", "a cat"])
      ['wrote 0.50 characters for each of the references (0.67 to 1.5 is usual)', '1 of 2 texts are empty']
    """
    looped, natural = repetition(texts), repetition(references)
    ratio, (low, high) = length_ratio(texts, references), LENGTH_RATIO
    empty = empty_texts(texts, references)
    lines = []
    if looped > natural + REPETITION_EXCESS:
        lines.append(f"repeats itself: {looped:.0%} of {NGRAM}-character strings recur in a text, {natural:.0%} usual")
    if not low <= ratio <= high:
        lines.append(f"wrote {ratio:.2f} characters for each of the references ({low} to {high} is usual)")
    if empty:
        lines.append(f"{empty:,} of {len(texts):,} texts are empty")
    return lines
