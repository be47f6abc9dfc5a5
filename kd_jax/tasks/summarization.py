"""Summarization: a document and the few sentences that say it; scored by ROUGE."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import regex

from kd_jax.config import is_count
from kd_jax.errors import KdError
from kd_jax.tasks.base import Counted, Decoding, Encoded, Example, check_counted, encode_pair, encode_prompt
from kd_jax.tasks.metrics import Metric, Outcome, ratio, rouge, rouge_f

# A full stop ends no sentence behind an initial or one of these, nor where a small letter follows.
ABBREVIATIONS = r"\b(?:\p{Lu}|Mr|Mrs|Ms|Dr|Prof|St|Gen|Sen|Rep|Gov|Lt|Col|Jr|Sr|vs|No|e\.g|i\.e)"
BETWEEN_SENTENCES = regex.compile(
    rf"(?<=((?<!{ABBREVIATIONS})\.|[!?…])[\"'”’)\]]*)\s+(?![\s\p{{Ll}}])"  # blanks behind a stop
    r"|(?<=[。！？][”」』]*)(?![”」』]|\Z)\s*"  # where no blanks are written
    r"|\s*\n\s*\n\s*"  # an empty line
)


@dataclasses.dataclass(frozen=True)
class Summarization:
    """From the field `document` into the field `summary`.

    Attributes:
      document: name of the text to read.
      summary: name of the text to write.
      document_tokens: the document's first tokens, which alone are read; 0 for all.
      references: further summaries of validation and test examples.
      language: of the summaries, for ROUGE's words: "en" or another (kd_jax.tasks.metrics.rouge_f).
      lead_sentences: of the baseline; 3 is the custom for news.
      counted: whether the loss is on the summary alone or on the document too (decoder-only models).
      decoding: how summaries are written.

    Examples:
      >>> task = Summarization()
      >>> example = {"document": "Mr. Fox left. He is gone.", "summary": "Fox is gone."}
      >>> task.prompt(example), task.baselines["lead"](example)
      ('Mr. Fox left. He is gone.', 'Mr. Fox left.')
    """

    document: str = "document"
    summary: str = "summary"
    document_tokens: int = 0
    references: tuple[str, ...] = ()
    language: str = "en"
    lead_sentences: int = 1
    counted: Counted = "completion"
    decoding: Decoding = Decoding(beam=4, length_ratio=0.25, length=16)

    name = "summarization"
    families = ("encoder_decoder", "decoder_only")
    prompted = True
    measuring = ("language", "lead_sentences", "decoding")

    def check(self) -> None:
        """Raises KdError naming the field that does not fit."""
        names = (self.document, self.summary, *self.references)
        if len(set(names)) < len(names):
            raise KdError(f"task: document, summary and references are {', '.join(names)}; wanted different fields")
        for field, least in (("document_tokens", 0), ("lead_sentences", 1)):
            if not is_count(vars(self)[field], least):
                raise KdError(f"task.{field}: {vars(self)[field]}; wanted a whole number of at least {least}")
        check_counted(self.counted)
        self.decoding.check()

    def fields(self) -> tuple[str, ...]:
        """The fields that an example must have."""
        return (self.document, self.summary)

    def text_fields(self) -> tuple[str, ...]:
        """All of them."""
        return self.fields()

    def held_out_fields(self) -> tuple[str, ...]:
        """The further summaries."""
        return self.references

    def prompt_fields(self) -> tuple[str, ...]:
        """What an example without a summary must have."""
        return (self.document,)

    def symbols(self) -> tuple[str, ...]:
        """None."""
        return ()

    def encode(self, example: Example, tokenizer: Any) -> Iterator[Encoded]:
        """The document's tokens, as many as are read, and the summary's; each with the end of the text."""
        prompt, summary = self.prompt(example), example[self.summary]
        yield encode_pair(prompt, summary, tokenizer, self.counted, self.document_tokens)

    def encode_prompt(self, text: str, tokenizer: Any) -> np.ndarray:
        """The document's tokens, as many as are read, and the end of the text, int32 [P]."""
        return encode_prompt(text, tokenizer, self.document_tokens)

    def prompt(self, example: Example) -> str:
        """The document."""
        return example[self.document]

    def references_of(self, example: Example) -> list[str]:
        """The summaries."""
        return [example[field] for field in (self.summary, *self.references)]

    def closeness(self, hypothesis: str, reference: str) -> float:
        """ROUGE-L's F, 0 to 100."""
        return rouge_f("L", self.language, hypothesis, [reference])

    @property
    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """The document's first sentences."""
        return {"lead": lambda example: lead(example[self.document], self.lead_sentences)}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """ROUGE-L, ROUGE-1 and ROUGE-2 by rouge-score, 0 to 100, and the length."""
        length = Metric("length_ratio", "length ratio", None, 2, "texts", characters, ratio)
        return *(rouge(kind, self.language) for kind in ("L", "1", "2")), length


def characters(outcome: Outcome) -> np.ndarray:
    """Characters written, and the mean of the references', of each example, float64 [N, 2].

    Examples:
      >>> characters(Outcome([{}], ["ab"], [["abcd", "ef"]])).tolist()
      [[2.0, 3.0]]
    """
    pairs = zip(outcome.texts, outcome.references, strict=True)
    return np.asarray(
        [(len(text), np.mean([len(reference) for reference in references])) for text, references in pairs]
    )


def lead(document: str, sentences: int) -> str:
    """The first sentences of a document, cut by rule: at stops, not at abbreviations, and at empty lines.

    Args:
      document: a text.
      sentences: how many; all, where there are fewer.

    Examples:
      >>> lead("At 3.5 km Dr. A. Fox said: “No!” Then he left. It rained.", 2)
      'At 3.5 km Dr. A. Fox said: “No!” Then he left.'
    """
    document = document.strip()
    ends = [match.start() for match in BETWEEN_SENTENCES.finditer(document)]
    return document[: ends[sentences - 1]] if len(ends) >= sentences else document
