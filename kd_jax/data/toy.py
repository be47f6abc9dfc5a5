"""A made-up language pair: English number phrases, and the same with letters reversed and colours moved."""

import numpy as np

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven")
COLOURS = ("red", "blue", "green", "white", "black")
NOUNS = ("houses", "boats", "birds", "stones", "trees", "clouds", "doors", "lamps")


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Distinct (sentence, translation) pairs of one or two phrases; there are 78,680 in all.

    Examples:
      >>> sentences(2, seed=0)  # doctest: +NORMALIZE_WHITESPACE
      [('five green birds and three red houses', 'evif sdrib neerg et eerht sesuoh der'),
       ('two black clouds', 'owt sduolc kcalb')]
    """
    rng = np.random.default_rng(seed)
    translations: dict[str, str] = {}
    while len(translations) < count:
        phrases = [[str(rng.choice(words)) for words in (NUMBERS, COLOURS, NOUNS)] for _ in range(rng.integers(1, 3))]
        source = " and ".join(" ".join(phrase) for phrase in phrases)
        translations[source] = " et ".join(f"{n[::-1]} {o[::-1]} {c[::-1]}" for n, c, o in phrases)
    return list(translations.items())
