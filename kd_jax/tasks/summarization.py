"""Summarization of documents, scored by ROUGE."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import regex

from kd_jax.config import MAX_LENGTH, check_count
from kd_jax.errors import KdError
from kd_jax.tasks.base import Counted, Decoding, Encoded, check_counted, encode_pair, encode_prompt
from kd_jax.tasks.metrics import Metric, Outcome, ratio, rouge, rouge_f
from kd_jax.types import Example

if TYPE_CHECKING:
    from kd_jax.tokenizers.base import Tokenizer

# A full stop after an initial or one of these, or before a lower-case letter, does not end a sentence.
ABBREVIATIONS = r"\b(?:\p{Lu}|Mr|Mrs|Ms|Dr|Prof|St|Gen|Sen|Rep|Gov|Lt|Col|Jr|Sr|vs|No|e\.g|i\.e)"
BETWEEN_SENTENCES = regex.compile(
    rf"(?<=((?<!{ABBREVIATIONS})\.|[!?…؟۔।॥።։])[\"'”’)\]]{{0,8}})\s++(?!\p{{Ll}})"  # whitespace after a stop
    r"|(?<=[。！？។။།][”」』]{0,8})(?![”」』]|\Z)\s*"  # scripts without spaces
    r"|(?<!\s)\s*\n\s*\n\s*"  # an empty line
)


@dataclasses.dataclass(frozen=True)
class Summarization:
    """Generate the field `summary` from the field `document`.

    Attributes:
      document: name of the field with the document.
      summary: name of the field with the summary.
      document_tokens: truncate documents to their first tokens; 0 for all.
      references: names of further summaries of validation and test examples.
      language: of the summaries: stems are those of English ("en"), other languages have none. References in other
        scripts have words of their own under any language (kd_jax.tasks.metrics.rouge_f).
      lead_sentences: sentences of the baseline `lead`; 3 is usual for news.
      counted: "completion" for a loss on the summary, "all" for a loss on the document too (decoder-only models).
      decoding: settings of generation.

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
    evaluation_fields = ("language", "lead_sentences", "decoding")

    def check(self) -> None:
        """Raise KdError if a field is invalid."""
        names = (self.document, self.summary, *self.references)
        if len(set(names)) < len(names):
            raise KdError(
                f"task: expected different fields for document, summary and references, got {', '.join(names)}."
            )
        for field, minimum in (("document_tokens", 0), ("lead_sentences", 1)):
            check_count(f"task.{field}", getattr(self, field), minimum, MAX_LENGTH)
        check_counted(self.counted)
        self.decoding.check()

    def fields(self) -> tuple[str, ...]:
        """Return the fields of every example."""
        return (self.document, self.summary)

    def text_fields(self) -> tuple[str, ...]:
        """Return all fields."""
        return self.fields()

    def held_out_fields(self) -> tuple[str, ...]:
        """Return the fields of further summaries."""
        return self.references

    def prompt_fields(self) -> tuple[str, ...]:
        """Return the field of an example without a summary."""
        return (self.document,)

    def symbols(self) -> tuple[str, ...]:
        """Return no fields."""
        return ()

    def encode(self, example: Example, tokenizer: "Tokenizer") -> Iterator[Encoded]:
        """Yield the token ids of the (truncated) document and the summary, each with an end token."""
        prompt, summary = self.prompt(example), example[self.summary]
        yield encode_pair(prompt, summary, tokenizer, self.counted, self.document_tokens)

    def encode_prompt(self, text: str, tokenizer: "Tokenizer") -> np.ndarray:
        """Return the token ids of a (truncated) document with its end token, int32 [P]."""
        return encode_prompt(text, tokenizer, self.document_tokens)

    def prompt(self, example: Example) -> str:
        """Return the document."""
        return example[self.document]

    def references_of(self, example: Example) -> list[str]:
        """Return the summaries."""
        return [example[field] for field in (self.summary, *self.references)]

    def similarity(self, hypothesis: str, reference: str) -> float:
        """Return the F-measure of ROUGE-L, 0 to 100."""
        return rouge_f("L", self.language, hypothesis, [reference])

    @property
    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """Return the first sentences of the document."""
        return {"lead": lambda example: lead(example[self.document], self.lead_sentences)}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Return ROUGE-L, ROUGE-1 and ROUGE-2 (rouge-score, 0 to 100), and the length ratio."""
        length = Metric("length_ratio", "length ratio", None, 2, "texts", characters, ratio)
        return *(rouge(kind, self.language) for kind in ("L", "1", "2")), length


def characters(outcome: Outcome) -> np.ndarray:
    """Return (characters of the text, mean characters of its references) of each example, float64 [N, 2]."""
    pairs = zip(outcome.texts, outcome.references, strict=True)
    return np.asarray(
        [(len(text), np.mean([len(reference) for reference in references])) for text, references in pairs]
    )


def lead(document: str, sentences: int) -> str:
    """Return the first sentences of a document; all if there are fewer.

    Sentences end at stops that do not belong to an abbreviation, and at empty lines.
    """
    document = document.strip()
    ends = [match.start() for match in BETWEEN_SENTENCES.finditer(document)]
    return document[: ends[sentences - 1]] if len(ends) >= sentences else document
