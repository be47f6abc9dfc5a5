"""Language modelling: bits per byte of texts, and diversity of generated continuations."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import regex
from sacrebleu import sentence_bleu
from sacrebleu.metrics.bleu import BLEU

from kd_jax.config import MAX_LENGTH, check_count
from kd_jax.errors import KdError
from kd_jax.tasks.base import Counted, Decoding, Encoded, Sampling, encode_text
from kd_jax.tasks.languages import UNSPACED, UNSPACED_LETTER, is_unspaced, split_words
from kd_jax.tasks.metrics import Metric, Outcome, bits_per_byte, ratio
from kd_jax.types import Example

if TYPE_CHECKING:
    from kd_jax.tokenizers.base import Tokenizer

DROPPED = r"\v\x1c-\x1f"  # whitespace to Python; SentencePiece drops these, and its pieces span them
SPACE, SPACED_WORD = rf"[^\S{DROPPED}]*", rf"[\S{DROPPED}]+"
UNSPACED_WORD = rf"(?:(?=[{UNSPACED}])\X|[[\S{DROPPED}]--[{UNSPACED}]]+)"
MAX_OTHERS = 32  # other texts in self-BLEU; all of them would cost the square of their number


@dataclasses.dataclass(frozen=True)
class Generation:
    """Language modelling of the field `text`.

    A long text is split into windows, and each of its tokens counts once. Continuations of a text's first words are
    generated and compared with its own words. Words are separated by whitespace; each character of a script without
    blanks between words, such as Chinese or Thai, is a word. A text of at most `prompt_words` words is all prompt and
    has no continuation to measure.

    Attributes:
      text: name of the field.
      window: maximum length of a window in tokens, with its context.
      context: tokens before every window except the first, as input only.
      prompt_words: words at the start of a text that are continued.
      compared_words: words after the prompt that are measured. Diversity decreases with length, so all models are
        compared at one length.
      decoding: settings of generation.

    Examples:
      >>> task = Generation(prompt_words=2, compared_words=3)
      >>> example = {"text": "once upon a time there was a fox"}
      >>> task.prompt(example), task.references_of(example)
      ('once upon', ['a time there'])
    """

    text: str = "text"
    window: int = 512
    context: int = 128
    prompt_words: int = 8
    compared_words: int = 32
    decoding: Decoding = Decoding(beam=1, length_ratio=0.0, length=64, sampling=Sampling(temperature=1.0, top_p=0.95))

    name = "generation"
    families = ("decoder_only",)
    prompted = False
    evaluation_fields = ("prompt_words", "compared_words", "decoding")

    @property
    def counted(self) -> Counted:
        """Return "completion": every token of a text is its completion."""
        return "completion"

    def check(self) -> None:
        """Raise KdError if a field is out of its range."""
        for field, minimum in (("window", 1), ("context", 0), ("prompt_words", 0), ("compared_words", 1)):
            check_count(f"task.{field}", getattr(self, field), minimum, MAX_LENGTH)
        if self.context >= self.window:
            raise KdError(
                f"task.context: expected less than task.window, which is {self.window}, got {self.context}. Every "
                "window needs tokens of its own."
            )
        self.decoding.check()

    def fields(self) -> tuple[str, ...]:
        """Return the field of every example."""
        return (self.text,)

    def text_fields(self) -> tuple[str, ...]:
        """Return all fields."""
        return self.fields()

    def held_out_fields(self) -> tuple[str, ...]:
        """Return no fields."""
        return ()

    def prompt_fields(self) -> tuple[str, ...]:
        """Return no fields: a text is prompt and reference at once."""
        return ()

    def symbols(self) -> tuple[str, ...]:
        """Return no fields."""
        return ()

    def encode(self, example: Example, tokenizer: "Tokenizer") -> Iterator[Encoded]:
        """Yield the windows of a text and its end token; raise KdError if the text has no tokens."""
        ids_N = encode_text(example[self.text], tokenizer)
        if len(ids_N) == 1:
            raise KdError(
                f"source: expected text in the field {self.text} of every example, got {example[self.text][:30]!r}. "
                "Remove the example."
            )
        yield from windows(ids_N, self.window, self.context)

    def encode_prompt(self, text: str, tokenizer: "Tokenizer") -> np.ndarray:
        """Return the token ids of a text, int32 [P], without an end token because the text continues."""
        return encode_text(text, tokenizer)[:-1]

    def prompt(self, example: Example) -> str:
        """Return the first words.

        No token spans the whitespace after them, so their ids are the first ids of the whole text. In scripts without
        blanks a token may span their end.
        """
        return first_words(example[self.text], self.prompt_words)

    def references_of(self, example: Example) -> list[str]:
        """Return the words after the prompt to compare with; "" if the text is all prompt."""
        continuation = example[self.text][len(self.prompt(example)) :]
        return [first_words(continuation, self.compared_words).strip()]

    def similarity(self, hypothesis: str, reference: str) -> float:
        """Return sentence BLEU with exponential smoothing (sacreBLEU), 0 to 100."""
        return sentence_bleu(hypothesis, [reference], tokenize="char" if is_unspaced([reference]) else "13a").score

    @property
    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """Return the text's own words after the prompt, as a reference for the diversity of texts."""
        return {"real_text": lambda example: self.references_of(example)[0]}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Return bits per byte and perplexity of the data, and distinct-2, rep-4 and self-BLEU of generated texts."""
        signature = f"sacreBLEU, words, others:{MAX_OTHERS}"
        return (
            bits_per_byte(lambda example: example[self.text]),
            Metric("perplexity", "perplexity", False, 2, "tokens", nll_and_tokens, perplexity, "by token"),
            Metric("distinct_2", "distinct-2", None, 3, "texts", new_bigrams, ratio, "words"),
            Metric("repetition", "rep-4", None, 3, "texts", repeated_fourgrams, ratio, "words"),
            Metric("self_bleu", "self-BLEU", None, 2, "texts", self_bleu, ratio, signature),
        )


def windows(ids_N: np.ndarray, window: int, context: int) -> Iterator[Encoded]:
    """Yield windows of at most `window` tokens of a text; every token counts once.

    The `context` tokens before a window become its prompt. The first window has none.
    """
    start = 0
    while start < len(ids_N):
        before = min(context, start)
        end = start + window - before
        prompt, completion = ids_N[start - before : start], ids_N[start:end]
        yield Encoded(prompt, completion, np.arange(before + len(completion)) >= before)
        start = end


def first_words(text: str, count: int) -> str:
    """Return the first `count` words of a text, with the whitespace before and between them."""
    word = UNSPACED_WORD if UNSPACED_LETTER.search(text) else SPACED_WORD
    match = regex.match(rf"(?:{SPACE}{word}){{0,{count}}}", text, regex.V1)
    assert match is not None  # the pattern matches the empty string
    return match[0]


def nll_and_tokens(outcome: Outcome) -> np.ndarray:
    """Return nats and tokens of each example, float64 [N, 2]."""
    assert outcome.nll_N is not None and outcome.tokens_N is not None
    return np.stack([outcome.nll_N, outcome.tokens_N], axis=1)


def perplexity(sums_S: np.ndarray) -> float:
    """Return exp(nats / tokens)."""
    return float(np.exp(ratio(sums_S)))


def compared_words(outcome: Outcome) -> list[list[str]]:
    """Return the words of each text, truncated to the number of its reference's words."""
    pairs = zip(outcome.texts, outcome.references, strict=True)
    return [split_words(text)[: len(split_words(references[0]))] for text, references in pairs]


def new_bigrams(outcome: Outcome) -> np.ndarray:
    """Return the numbers of new and of all word bigrams in each text, float64 [N, 2].

    A bigram is new if it does not occur before, in this text or an earlier one. So the ratio of the sums is distinct-2:
    unique bigrams / all bigrams of the set. A bootstrap resample uses these numbers as they are, so the interval does
    not include repetitions between the drawn texts.

    References:
      Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models, arXiv 1510.03055.
    """
    seen: set[tuple[str, str]] = set()
    rows = []
    for words in compared_words(outcome):
        bigrams = list(itertools.pairwise(words))
        rows.append((len(set(bigrams) - seen), len(bigrams)))
        seen.update(bigrams)
    return np.asarray(rows, np.float64)


def repeated_fourgrams(outcome: Outcome) -> np.ndarray:
    """Return the numbers of repeated and of all word 4-grams in each text, float64 [N, 2].

    A 4-gram is repeated if it occurs earlier in the same text. People rarely repeat four words in a short text.

    References:
      Welleck et al. 2020, arXiv 1908.04319, section 6 (seq-rep-4).
    """
    fourgrams = [list(zip(*(words[i:] for i in range(4)), strict=False)) for words in compared_words(outcome)]
    return np.asarray([(len(text) - len(set(text)), len(text)) for text in fourgrams], np.float64)


def self_bleu(outcome: Outcome) -> np.ndarray:
    """Return (BLEU-4 against other texts of the set, 1) of each text, float64 [N, 2].

    A text without words, or without other texts, has (0, 0). The other texts are at most MAX_OTHERS, evenly spaced in
    the set and the same in every call. BLEU is 0 to 100.

    References:
      Zhu et al. 2018, Texygen, arXiv 1802.01886.
    """
    bleu, texts = BLEU(effective_order=True, tokenize="none"), [" ".join(words) for words in compared_words(outcome)]
    with_words = [i for i, text in enumerate(texts) if text]
    count = min(MAX_OTHERS, len(with_words) - 1)
    steps = [
        k * (len(with_words) - 1) // count for k in range(1, count + 1)
    ]  # offsets around the circle of texts, without the text itself
    rows = np.zeros((len(texts), 2))
    for position, i in enumerate(with_words):
        others = [texts[with_words[(position + step) % len(with_words)]] for step in steps]
        if others:
            rows[i] = bleu.sentence_score(texts[i], others).score, 1
    return rows
