"""Made-up text: a language pair, lists with their short form, and lists that count up."""

import numpy as np

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven")
COLOURS = ("red", "blue", "green", "white", "black")
NOUNS = ("houses", "boats", "birds", "stones", "trees", "clouds", "doors", "lamps")


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Distinct (sentence, translation) of one or two phrases; there are 78,680 in all.

    The translation has the same words with their letters reversed, and the colour behind its noun.

    Examples:
      >>> pairs(2, seed=0)  # doctest: +NORMALIZE_WHITESPACE
      [('five green birds and three red houses', 'evif sdrib neerg et eerht sesuoh der'),
       ('two black clouds', 'owt sduolc kcalb')]
    """
    rng = np.random.default_rng(seed)
    translations: dict[str, str] = {}
    while len(translations) < count:
        phrases = _phrases(rng, int(rng.integers(1, 3)))
        source = " and ".join(" ".join(phrase) for phrase in phrases)
        translations[source] = " et ".join(f"{n[::-1]} {o[::-1]} {c[::-1]}" for n, c, o in phrases)
    return list(translations.items())


def summaries(count: int, seed: int) -> list[tuple[str, str]]:
    """Distinct (list of three to six phrases, its short form: the first of them and how many follow).

    Examples:
      >>> text, short_form = summaries(1, seed=0)[0]
      >>> text.split(", ")  # doctest: +NORMALIZE_WHITESPACE
      ['five green birds', 'three red houses', 'one red doors', 'five black trees', 'five black clouds',
       'five green trees']
      >>> short_form
      'five green birds and five more'
    """
    rng = np.random.default_rng(seed)
    short_forms: dict[str, str] = {}
    while len(short_forms) < count:
        phrases = [" ".join(phrase) for phrase in _phrases(rng, int(rng.integers(3, 7)))]
        short_forms[", ".join(phrases)] = f"{phrases[0]} and {NUMBERS[len(phrases) - 2]} more"
    return list(short_forms.items())


def documents(count: int, seed: int) -> list[tuple[str]]:
    """Distinct lists of three to six phrases: the number counts up, the colour stays, the noun is free.

    So a model's loss can fall to that of the first phrase, the nouns and the end, and no further.

    Examples:
      >>> documents(2, seed=0)[1]
      ('two black lamps, three black trees, four black trees, five black lamps, six black clouds',)
    """
    rng = np.random.default_rng(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        first, colour = int(rng.integers(len(NUMBERS))), str(rng.choice(COLOURS))
        nouns = rng.choice(NOUNS, int(rng.integers(3, 7)))
        phrases = (f"{NUMBERS[(first + i) % len(NUMBERS)]} {colour} {noun}" for i, noun in enumerate(nouns))
        texts[", ".join(phrases)] = None
    return [(text,) for text in texts]


def _phrases(rng: np.random.Generator, count: int) -> list[list[str]]:
    """Phrases of a number, a colour and a noun."""
    return [[str(rng.choice(words)) for words in (NUMBERS, COLOURS, NOUNS)] for _ in range(count)]
