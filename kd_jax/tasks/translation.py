"""Machine translation in one or several directions, scored by BLEU and chrF."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from kd_jax.errors import KdError
from kd_jax.tasks.base import Counted, Decoding, Encoded, check_counted, encode_pair, encode_prompt
from kd_jax.tasks.languages import bleu_tokenizer, is_unspaced
from kd_jax.tasks.metrics import Metric, Outcome
from kd_jax.types import Example

if TYPE_CHECKING:
    from kd_jax.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Translation:
    """Generate the field `target` from the field `source`, in one direction or in the direction of each example.

    Attributes:
      source: name of the field with the source text.
      target: name of the field with the translation. With one direction it is also the language, for BLEU's tokenizer
        (kd_jax.tasks.languages.bleu_tokenizer).
      direction: name of the field with the direction of an example, such as "en-fr"; "" for one direction.
      directions: all directions. The tag of the target language, such as "<2fr>", stands before each source text.
      references: names of further references of validation and test examples.
      tokenize: tokenizer of BLEU; "" for that of the target language.
      counted: "completion" for a loss on the translation, "all" for a loss on the prompt too (decoder-only models).
      decoding: settings of generation.

    Examples:
      >>> task = Translation(source="en", target="fr")
      >>> task.prompt({"en": "a house", "fr": "une maison"}), task.fields()
      ('a house', ('en', 'fr'))
      >>> task = Translation("text", "translation", direction="way", directions=("en-fr", "fr-en"))
      >>> task.prompt({"text": "une maison", "translation": "a house", "way": "fr-en"}), task.symbols()
      ('<2en> une maison', ('<2en>', '<2fr>'))
    """

    source: str = "en"
    target: str = "fr"
    direction: str = ""
    directions: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    tokenize: str = ""
    counted: Counted = "completion"
    decoding: Decoding = Decoding()

    name = "translation"
    families = ("encoder_decoder", "decoder_only")
    prompted = True
    evaluation_fields = ("decoding", "tokenize")

    def check(self) -> None:
        """Raise KdError if a field is invalid, or BLEU's tokenizer is not installed."""
        names = (*self.fields(), *self.references)
        if len(set(names)) < len(names):
            raise KdError(
                f"task: expected different fields for source, target, direction and references, got {', '.join(names)}."
            )
        if bool(self.direction) != bool(self.directions):
            raise KdError(
                "task.directions: expected it to be set together with task.direction, got only one of them. Set both, "
                "for example directions=('en-fr', 'fr-en'), or neither."
            )
        for direction in self.directions:
            if not re.fullmatch(r"[^\s-]+-[^\s-]+", direction):
                raise KdError(f"task.directions: expected two languages such as 'en-fr', got {direction!r}.")
        if len(set(self.directions)) < len(self.directions):
            raise KdError(f"task.directions: expected each direction once, got {', '.join(self.directions)}.")
        check_counted(self.counted)
        self.decoding.check()
        for language in self.languages:
            bleu(language, self.tokenize)

    @property
    def languages(self) -> tuple[str, ...]:
        """Return the target languages, each once."""
        return tuple(sorted({direction.split("-")[1] for direction in self.directions})) or (self.target,)

    def fields(self) -> tuple[str, ...]:
        """Return the fields of every example."""
        return (self.source, self.target, self.direction) if self.direction else (self.source, self.target)

    def text_fields(self) -> tuple[str, ...]:
        """Return source and target."""
        return self.source, self.target

    def held_out_fields(self) -> tuple[str, ...]:
        """Return the fields of further references."""
        return self.references

    def prompt_fields(self) -> tuple[str, ...]:
        """Return the fields of an example without a translation."""
        return (self.source, self.direction) if self.direction else (self.source,)

    def symbols(self) -> tuple[str, ...]:
        """Return the tags of the target languages."""
        return tuple(f"<2{language}>" for language in self.languages) if self.directions else ()

    def encode(self, example: Example, tokenizer: "Tokenizer") -> Iterator[Encoded]:
        """Yield the token ids of source and translation, each with an end token."""
        yield encode_pair(self.prompt(example), example[self.target], tokenizer, self.counted)

    def encode_prompt(self, text: str, tokenizer: "Tokenizer") -> np.ndarray:
        """Return the token ids of a source text with its end token, int32 [P]; raise KdError without its tag."""
        if self.directions and not text.startswith(self.symbols()):
            raise KdError(
                f"prompt: expected a language tag at its start, one of {' '.join(self.symbols())}, got {text[:30]!r}."
            )
        return encode_prompt(text, tokenizer)

    def prompt(self, example: Example) -> str:
        """Return the source text, after its tag if there are several directions."""
        if not self.directions:
            return example[self.source]
        if example[self.direction] not in self.directions:
            raise KdError(
                f"source: expected one of task.directions ({', '.join(self.directions)}) in the field "
                f"{self.direction}, got {example[self.direction]!r}. Add it to task.directions."
            )
        return f"<2{example[self.direction].split('-')[1]}> {example[self.source]}"

    def references_of(self, example: Example) -> list[str]:
        """Return the reference translations."""
        return [example[field] for field in (self.target, *self.references)]

    def similarity(self, hypothesis: str, reference: str) -> float:
        """Return sentence BLEU with exponential smoothing, 0 to 100.

        If there are several target languages, the tokenizer is char for scripts without blanks, 13a for others.
        """
        language, tokenize = self.languages[0], self.tokenize
        if len(self.languages) > 1:
            language, tokenize = "", tokenize or ("char" if is_unspaced([reference]) else "13a")
        return sentence_bleu(language, tokenize).sentence_score(hypothesis, [reference]).score

    @property
    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """Return the source text itself, which shows the score of words that stay the same."""
        return {"copy": lambda example: example[self.source]}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Return corpus BLEU (cased) and chrF2 (sacreBLEU, 0 to 100); for several directions mean BLEU, then each."""
        references = 1 + len(self.references)
        chrf = sacrebleu_metric("chrf", "chrF", CHRF(), references)
        if not self.directions:
            metric = sacrebleu_metric("bleu", "BLEU", bleu(self.target, self.tokenize), references)

            def checked(outcome: Outcome) -> np.ndarray:
                self._check_references(self.target, outcome.references)
                return metric.statistics(outcome)

            return metric._replace(statistics=checked), chrf
        each = tuple(self._of_direction(direction) for direction in self.directions)

        def statistics(outcome: Outcome) -> np.ndarray:
            return np.concatenate([metric.statistics(outcome) for metric in each], axis=1)

        def mean(sums_S: np.ndarray) -> float:
            parts = zip(each, np.split(sums_S, len(each)), strict=True)
            scores = [
                metric.value(part) for metric, part in parts if part.any()
            ]  # directions without examples do not count
            return float(np.mean(scores)) if scores else 0.0

        return Metric("bleu", "mean BLEU", True, 2, "texts", statistics, mean, each[0].signature), *each, chrf

    def _of_direction(self, direction: str) -> Metric:
        """Return BLEU over the examples of one direction."""
        source, target = direction.split("-")
        scorer = bleu(target, self.tokenize)
        metric = sacrebleu_metric(f"bleu_{source}_{target}", f"BLEU {direction}", scorer, 1 + len(self.references))

        def statistics(outcome: Outcome) -> np.ndarray:
            mask_N = np.asarray([example[self.direction] == direction for example in outcome.examples])
            self._check_references(target, itertools.compress(outcome.references, mask_N))
            return metric.statistics(outcome) * mask_N[:, None]

        return metric._replace(statistics=statistics)

    def _check_references(self, language: str, references: Iterable[Sequence[str]]) -> None:
        """Raise KdError if a language without a tokenizer of its own has references without blanks between words."""
        texts = [text for each in references for text in each]
        if not self.tokenize and bleu_tokenizer(language) == "13a" and is_unspaced(texts):
            raise KdError(
                "task.tokenize: expected BLEU's tokenizer for text without blanks between words, got 13a, which the "
                f"language {language!r} has by default, for {texts[0][:20]!r}. Set --task.tokenize to zh, ja-mecab, "
                "flores200 or char, or to 13a if there are blanks."
            )


def bleu(language: str, tokenize: str, **options: Any) -> BLEU:
    """Return sacreBLEU's BLEU with the tokenizer of a language, or with the one that `tokenize` names."""
    name = tokenize or bleu_tokenizer(language)
    if name not in BLEU.TOKENIZERS:
        raise KdError(
            f"task.tokenize: expected one of {', '.join(BLEU.TOKENIZERS)}, or '' for the language's, got {name!r}."
        )
    try:
        return BLEU(tokenize=name, **options)
    except (RuntimeError, OSError, ImportError) as error:  # mecab or sentencepiece is missing
        reason = " ".join(str(error).split())
        raise KdError(
            f"task.tokenize: expected BLEU's tokenizer for {language!r} to be installed, got: {reason}. Install it, or "
            "set --task.tokenize char."
        ) from error


@functools.cache
def sentence_bleu(language: str, tokenize: str) -> BLEU:
    """Return `bleu` for single sentences: n-grams longer than the sentence are excluded."""
    return bleu(language, tokenize, effective_order=True)


def sacrebleu_metric(name: str, label: str, metric: BLEU | CHRF, references: int = 1) -> Metric:
    """Return a corpus score of sacreBLEU, 0 to 100, as a Metric.

    `references` is the number of references of each example; the signature names it.

    References:
      Post 2018, arXiv 1804.08771; Papineni et al. 2002; Popović 2015.
    """

    # sacreBLEU's additive statistics, which it uses for its own bootstrap, have no public name.
    def statistics(outcome: Outcome) -> np.ndarray:
        references = list(zip(*outcome.references, strict=True))
        return np.asarray(metric._extract_corpus_statistics(outcome.texts, references), np.float64)

    def value(sums_S: np.ndarray) -> float:
        return float(metric._compute_score_from_stats([int(x) for x in sums_S]).score)

    metric.corpus_score(["one"], [["one"]] * references)  # sets the number of references in the signature
    return Metric(name, label, True, 2, "texts", statistics, value, str(metric.get_signature()))
