"""Made-up text as a source, for tests and a first look: a language pair, lists with a short form, counting lists."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from kd_jax.config import MAX_SEED, check_count
from kd_jax.errors import KdError
from kd_jax.sources.base import Splits, check_counts, check_unlabelled
from kd_jax.sources.splits import drop_references

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven")
COLOURS = ("red", "blue", "green", "white", "black")
NOUNS = ("houses", "boats", "birds", "stones", "trees", "clouds", "doors", "lamps")


@dataclasses.dataclass(frozen=True)
class Toy:
    """Made-up text for tests and a first look; it needs no network.

    Attributes:
      examples: number of training examples; validation and test have an eighth each.
      seed: of the random text.
      kind: "pairs" (of languages), "summaries" (a list and its short form), or "documents" (one field).
      labelled: number of training examples that keep their reference, the others become unlabelled; 0 for all.

    Examples:
      >>> splits = Toy(examples=80).splits(("en", "fr"))
      >>> {split: len(rows) for split, rows in splits.items()}
      {'test': 10, 'validation': 10, 'train': 80}
      >>> splits["train"][0]
      {'en': 'two black stones and seven white clouds', 'fr': 'owt senots kcalb et neves sduolc etihw'}
    """

    examples: int = 400
    seed: int = 0
    kind: Literal["pairs", "summaries", "documents"] = "pairs"
    labelled: int = 0

    name = "toy"

    def files(self) -> list[Path]:
        """Return no files."""
        return []

    def check(self) -> None:
        """Raise KdError if a field has an invalid value; each of the 78,680 pairs is used once."""
        if self.kind not in GENERATORS:
            raise KdError(f"source.kind: expected {', '.join(GENERATORS)}, got {self.kind!r}. Choose one.")
        check_count("source.examples", self.examples, 8, 50_000, "No more text is distinct.")
        check_count("source.seed", self.seed, 0, MAX_SEED)
        check_counts(labelled=self.labelled)

    def splits(
        self, fields: Sequence[str], held_out_fields: Sequence[str] = (), prompt_fields: Sequence[str] = ()
    ) -> Splits:
        """Return splits of distinct texts, as Source.splits, under the task's field names."""
        check_unlabelled(prompt_fields, labelled=self.labelled)
        held_out = self.examples // 8
        texts = GENERATORS[self.kind](self.examples + 2 * held_out, self.seed)
        if len(fields) != len(texts[0]) or held_out_fields:
            names = ", ".join((*fields, *held_out_fields))
            raise KdError(
                f"source.kind: expected a kind with the task's fields {names}, got {self.kind!r} with {len(texts[0])} "
                "texts per example. Use another kind or source."
            )
        rows = [dict(zip(fields, row, strict=True)) for row in texts]
        train = 2 * held_out
        splits: Splits = {"test": rows[:held_out], "validation": rows[held_out:train], "train": rows[train:]}
        return drop_references(splits, fields[0], prompt_fields, self.labelled)


def generate_pairs(count: int, seed: int) -> list[tuple[str, ...]]:
    """Return distinct pairs (sentence, translation) of one or two phrases; there are 78,680 in all.

    The translation has the same words with their letters reversed, and the colour after its noun.
    """
    rng = np.random.default_rng(seed)
    translations: dict[str, str] = {}
    while len(translations) < count:
        phrases = _phrases(rng, int(rng.integers(1, 3)))
        source = " and ".join(" ".join(phrase) for phrase in phrases)
        translations[source] = " et ".join(f"{n[::-1]} {o[::-1]} {c[::-1]}" for n, c, o in phrases)
    return list(translations.items())


def generate_summaries(count: int, seed: int) -> list[tuple[str, ...]]:
    """Return distinct pairs: a list of three to six phrases, and its first phrase with the number of the others.

    Examples:
      >>> generate_summaries(1, seed=0)  # doctest: +NORMALIZE_WHITESPACE
      [('five green birds, three red houses, one red doors, five black trees, five black clouds, five green trees',
        'five green birds and five more')]
    """
    rng = np.random.default_rng(seed)
    short_forms: dict[str, str] = {}
    while len(short_forms) < count:
        phrases = [" ".join(phrase) for phrase in _phrases(rng, int(rng.integers(3, 7)))]
        short_forms[", ".join(phrases)] = f"{phrases[0]} and {NUMBERS[len(phrases) - 2]} more"
    return list(short_forms.items())


def generate_documents(count: int, seed: int) -> list[tuple[str, ...]]:
    """Return distinct lists of three to six phrases: numbers count up, the colour is constant, nouns are random.

    A model's loss can fall to that of the first phrase, the nouns and the end.

    Examples:
      >>> generate_documents(2, seed=0)[1]
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
    """Return random phrases of a number, a colour and a noun."""
    return [[str(rng.choice(words)) for words in (NUMBERS, COLOURS, NOUNS)] for _ in range(count)]


GENERATORS = {"pairs": generate_pairs, "summaries": generate_summaries, "documents": generate_documents}
