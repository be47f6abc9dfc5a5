"""Detect degenerate texts: loops, unusual lengths and empty texts, relative to the references."""

from collections.abc import Sequence

NGRAM = 4  # characters, not words: finds loops inside a word, and in scripts without spaces
REPETITION_EXCESS = 0.15  # above the references' own share, since long texts and refrains repeat too
LENGTH_RATIO = (0.67, 1.5)


def repetition(texts: Sequence[str], n: int = NGRAM) -> float:
    r"""Return rep-n of a corpus: the share of character n-grams that occurred earlier in the same text.

    .. math:: 1 - \frac{\sum_i |\mathrm{unique\ n\text{-}grams}_i|}{\sum_i |\mathrm{n\text{-}grams}_i|}

    Args:
      texts: one text each.
      n: characters in an n-gram.

    Returns:
      A number in [0, 1]; 0 if no text has n characters.

    References:
      Welleck et al. 2020, arXiv 1908.04319, section 6 (there over tokens).

    Examples:
      >>> repetition(["abcabc"], n=3)
      0.25
    """
    ngrams = [[text[i : i + n] for i in range(len(text) - n + 1)] for text in texts]
    total = sum(map(len, ngrams))
    return 1 - sum(len(set(of_text)) for of_text in ngrams) / total if total else 0.0


def length_ratio(texts: Sequence[str], references: Sequence[str]) -> float:
    """Return characters of the texts over characters of the references; 1 if all references are empty.

    Args:
      texts: generated, one text each.
      references: in the same order.

    Examples:
      >>> length_ratio(["ab", "c"], ["abcd", "ef"])
      0.5
    """
    expected = sum(map(len, references))
    return sum(map(len, texts)) / expected if expected else 1.0


def empty_texts(texts: Sequence[str], references: Sequence[str]) -> int:
    """Count the texts that are empty where the reference is not.

    Args:
      texts: generated, one text each.
      references: in the same order.

    Examples:
      >>> empty_texts(["", " ", "a"], ["a", "", "a"])
      1
    """
    return sum(not text.strip() and bool(ref.strip()) for text, ref in zip(texts, references, strict=True))


def warnings(texts: Sequence[str], references: Sequence[str]) -> list[str]:
    """Return one line for each kind of degeneration; none for texts like the references.

    Args:
      texts: generated, one text each.
      references: in the same order.

    Examples:
      >>> warnings(["", "a cat"], ["a dog", "a cat"])
      ["length is 0.50 times the references' (0.67 to 1.5 is usual)", '1 of 2 texts are empty']
    """
    share, reference_share = repetition(texts), repetition(references)
    ratio, (low, high) = length_ratio(texts, references), LENGTH_RATIO
    empty = empty_texts(texts, references)
    lines = []
    if share > reference_share + REPETITION_EXCESS:
        lines.append(
            f"repetitive: {share:.0%} of {NGRAM}-character strings recur within a text ({reference_share:.0%} is usual)"
        )
    if not low <= ratio <= high:
        lines.append(f"length is {ratio:.2f} times the references' ({low} to {high} is usual)")
    if empty:
        lines.append(f"{empty:,} of {len(texts):,} texts are empty")
    return lines
