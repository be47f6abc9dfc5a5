"""Detect degenerate texts: loops, unusual lengths and empty texts, relative to the references."""

from collections.abc import Sequence

NGRAM = 4  # characters, not words: finds loops inside a word, and in scripts without spaces
REPETITION_EXCESS = 0.15  # above the references' own share, since long texts and refrains repeat too
LENGTH_RATIO = (0.67, 1.5)


def repetition(texts: Sequence[str], n: int = NGRAM) -> float:
    r"""Return rep-n of a corpus: the share of character n-grams that occurred earlier in the same text.

    .. math:: 1 - \frac{\sum_i |\mathrm{unique\ n\text{-}grams}_i|}{\sum_i |\mathrm{n\text{-}grams}_i|}

    References:
      Welleck et al. 2020, arXiv 1908.04319, section 6 (there over tokens).
    """
    ngrams = [[text[i : i + n] for i in range(len(text) - n + 1)] for text in texts]
    total = sum(map(len, ngrams))
    return 1 - sum(len(set(of_text)) for of_text in ngrams) / total if total else 0.0


def length_ratio(texts: Sequence[str], references: Sequence[str]) -> float:
    """Return characters of the texts over characters of the references; 1 if all references are empty."""
    expected = sum(map(len, references))
    return sum(map(len, texts)) / expected if expected else 1.0


def empty_texts(texts: Sequence[str], references: Sequence[str]) -> int:
    """Count the texts that are empty where the reference is not."""
    return sum(not text.strip() and bool(ref.strip()) for text, ref in zip(texts, references, strict=True))


def warnings(texts: Sequence[str], references: Sequence[str]) -> list[str]:
    """Return one line for each kind of degeneration; none for texts like the references."""
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
