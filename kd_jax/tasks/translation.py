"""Machine translation, one way or several at once: scored by BLEU and chrF."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from kd_jax.errors import KdError
from kd_jax.tasks.base import Counted, Decoding, Encoded, Example, check_counted, encode_pair, encode_prompt
from kd_jax.tasks.metrics import Metric, Outcome

UNSPACED = ("bo", "dz", "km", "lo", "my", "th")  # scripts without blanks that sacreBLEU chooses no tokeniser for


@dataclasses.dataclass(frozen=True)
class Translation:
    """From the field `source` into the field `target`; multi-way, where each example names its direction.

    Attributes:
      source: name of the source text in an example.
      target: name of the text to write; in a one-way task also its language, for BLEU's tokeniser.
      direction: name of the field that says from what into what, such as "en-fr"; "" for one way.
      directions: those there are; each source gets the tag of the language to write, such as "<2fr>".
      references: further references of validation and test examples.
      tokenize: BLEU's tokeniser; "" for the one of the target language.
      counted: whether the loss is on the completion alone or on the prompt too (decoder-only models).
      decoding: how translations are written.

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
    measuring = ("decoding", "tokenize")

    def check(self) -> None:
        """Raises KdError naming the field that does not fit, or the tokeniser that is not installed."""
        names = (*self.fields(), *self.references)
        if len(set(names)) < len(names):
            raise KdError(
                f"task: source, target, direction and references are {', '.join(names)}; wanted no name twice"
            )
        if bool(self.direction) != bool(self.directions):
            raise KdError("task.directions: wanted beside task.direction, such as ('en-fr', 'fr-en'); or neither")
        for direction in self.directions:
            if not re.fullmatch(r"[^\s-]+-[^\s-]+", direction):
                raise KdError(f"task.directions: {direction!r}; wanted two languages, such as 'en-fr'")
        if len(set(self.directions)) < len(self.directions):
            raise KdError(f"task.directions: {', '.join(self.directions)}; wanted each once")
        check_counted(self.counted)
        self.decoding.check()
        for language in self.languages:
            bleu(language, self.tokenize)

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that are written, each once."""
        return tuple(sorted({direction.split("-")[1] for direction in self.directions})) or (self.target,)

    def fields(self) -> tuple[str, ...]:
        """The fields that an example must have."""
        return (self.source, self.target, self.direction) if self.direction else (self.source, self.target)

    def text_fields(self) -> tuple[str, ...]:
        """Source and target."""
        return self.source, self.target

    def held_out_fields(self) -> tuple[str, ...]:
        """The further references."""
        return self.references

    def prompt_fields(self) -> tuple[str, ...]:
        """What an example without a translation must have."""
        return (self.source, self.direction) if self.direction else (self.source,)

    def symbols(self) -> tuple[str, ...]:
        """The tags."""
        return tuple(f"<2{language}>" for language in self.languages) if self.directions else ()

    def encode(self, example: Example, tokenizer: Any) -> Iterator[Encoded]:
        """Token ids that end with the end of the sentence."""
        yield encode_pair(self.prompt(example), example[self.target], tokenizer, self.counted)

    def encode_prompt(self, text: str, tokenizer: Any) -> np.ndarray:
        """The source's token ids and the end of the sentence, int32 [P]; raises KdError if the tag is missing."""
        if self.directions and not text.startswith(self.symbols()):
            raise KdError(f"{text[:30]!r}: no language tag; wanted one in front: {' '.join(self.symbols())}")
        return encode_prompt(text, tokenizer)

    def prompt(self, example: Example) -> str:
        """The source text, behind its tag where there are several directions."""
        if not self.directions:
            return example[self.source]
        if example[self.direction] not in self.directions:
            raise KdError(
                f"source: an example's {self.direction} is {example[self.direction]!r}; task.directions has "
                f"{', '.join(self.directions)}: name it there"
            )
        return f"<2{example[self.direction].split('-')[1]}> {example[self.source]}"

    def references_of(self, example: Example) -> list[str]:
        """The reference translations."""
        return [example[field] for field in (self.target, *self.references)]

    def closeness(self, hypothesis: str, reference: str) -> float:
        """Sentence BLEU with exponential smoothing (sacreBLEU), 0 to 100; of several languages' tokenisers 13a."""
        language = self.languages[0] if len(self.languages) == 1 else ""
        return sentence_bleu(language, self.tokenize).sentence_score(hypothesis, [reference]).score

    @property
    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """The source as it is: what a translation that leaves words alone is worth."""
        return {"copy": lambda example: example[self.source]}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Corpus BLEU (cased) and chrF2 by sacreBLEU, 0 to 100; of several directions BLEU's mean, then each."""
        references = 1 + len(self.references)
        chrf = sacrebleu_metric("chrf", "chrF", CHRF(), references)
        if not self.directions:
            return sacrebleu_metric("bleu", "BLEU", bleu(self.target, self.tokenize), references), chrf
        each = tuple(self._of_direction(direction) for direction in self.directions)

        def statistics(outcome: Outcome) -> np.ndarray:
            return np.concatenate([metric.statistics(outcome) for metric in each], axis=1)

        def mean(sums_S: np.ndarray) -> float:
            parts = zip(each, np.split(sums_S, len(each)), strict=True)
            scores = [metric.value(part) for metric, part in parts if part.any()]  # those that have examples
            return float(np.mean(scores)) if scores else 0.0

        return Metric("bleu", "mean BLEU", True, 2, "texts", statistics, mean, each[0].signature), *each, chrf

    def _of_direction(self, direction: str) -> Metric:
        """BLEU over the examples of one direction."""
        source, target = direction.split("-")
        scorer = bleu(target, self.tokenize)
        metric = sacrebleu_metric(f"bleu_{source}_{target}", f"BLEU {direction}", scorer, 1 + len(self.references))

        def statistics(outcome: Outcome) -> np.ndarray:
            here_N = np.asarray([example[self.direction] == direction for example in outcome.examples])
            return metric.statistics(outcome) * here_N[:, None]

        return metric._replace(statistics=statistics)


def bleu(language: str, tokenize: str, **options: Any) -> BLEU:
    """sacreBLEU with a language's tokeniser.

    Args:
      language: such as "zh" or "zh_Hant"; what sacreBLEU has no tokeniser for gets 13a, and without blanks flores200.
      tokenize: one of sacreBLEU's instead; "" for the language's.
      **options: BLEU's.

    Raises:
      KdError: if there is no such tokeniser, or its library or model is lacking.

    Examples:
      >>> bleu("zh_Hant", "").tokenizer_signature, bleu("fr", "").tokenizer_signature
      ('zh', '13a')
    """
    language = language.partition("_")[0].lower()
    name = tokenize or ("flores200" if language in UNSPACED else None)
    if name not in (None, *BLEU.TOKENIZERS):
        raise KdError(f"task.tokenize: {name!r}; wanted one of {', '.join(BLEU.TOKENIZERS)}, or '' for the language's")
    try:
        return BLEU(tokenize=name, trg_lang=language, **options)
    except (RuntimeError, OSError, ImportError) as error:  # mecab's or sentencepiece's part of it is lacking
        reason = " ".join(str(error).split())
        raise KdError(
            f"task.tokenize: BLEU's tokeniser for {language!r} cannot be had: {reason}; or --task.tokenize char"
        ) from error


@functools.cache
def sentence_bleu(language: str, tokenize: str) -> BLEU:
    """As `bleu`, for single sentences: orders of n-grams that are longer than the sentence are left out."""
    return bleu(language, tokenize, effective_order=True)


def sacrebleu_metric(name: str, label: str, metric: BLEU | CHRF, references: int = 1) -> Metric:
    """sacreBLEU's corpus score, 0 to 100: BLEU, or chrF2.

    Args:
      name, label: the metric's.
      metric: sacreBLEU's, with its tokeniser.
      references: of each example, for the signature.

    References:
      Post 2018, arXiv 1804.08771; Papineni et al. 2002; Popović 2015.

    Examples:
      >>> outcome = Outcome([{}], ["the cat sat on the mat"], [["the cat sat on the mat"]])
      >>> sacrebleu_metric("bleu", "BLEU", BLEU()).score(outcome, resamples=0).value
      100.0...
    """

    # sacreBLEU keeps statistics that can be added for its own bootstrap; they have no public name.
    def statistics(outcome: Outcome) -> np.ndarray:
        references = list(zip(*outcome.references, strict=True))
        return np.asarray(metric._extract_corpus_statistics(outcome.texts, references), np.float64)

    def value(sums_S: np.ndarray) -> float:
        return float(metric._compute_score_from_stats([int(x) for x in sums_S]).score)

    metric.corpus_score(["one"], [["one"]] * references)  # which tells its signature the number of references
    return Metric(name, label, True, 2, "texts", statistics, value, str(metric.get_signature()))
