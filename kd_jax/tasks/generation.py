"""Generation: texts for their own sake; measured by bits per byte, and by what is written beside what people write."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from sacrebleu import sentence_bleu
from sacrebleu.metrics import BLEU

from kd_jax.config import is_count
from kd_jax.errors import KdError
from kd_jax.tasks.base import Decoding, Encoded, Example, Sampling, encode_text
from kd_jax.tasks.metrics import Metric, Outcome, bits_per_byte, ratio

DROPPED = r"\v\x1c-\x1f"  # blanks to Python; SentencePiece drops them, and its pieces reach across
OTHERS = 32  # texts that each text is held against by self-BLEU: all would cost their number squared


@dataclasses.dataclass(frozen=True)
class Generation:
    """Language modelling of the field `text`; a long text is cut into windows, and each of its tokens counts once.

    What a model writes behind a text's first words is compared with the words that stand there. Words are what blanks
    part; a text of no more than `prompt_words` is all prompt, and nothing written behind it is measured.

    Attributes:
      text: name of the text.
      window: tokens seen at once, those of `context` included.
      context: tokens in front of every window but the first that are seen and do not count.
      prompt_words: words of a text that are given, to be gone on from.
      compared_words: words behind the prompt that are measured: diversity falls with length, so it is compared at one.
      decoding: how texts are written.

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
    counted = "completion"
    measuring = ("prompt_words", "compared_words", "decoding")

    def check(self) -> None:
        """Raises KdError naming the field that is out of its range."""
        for field, least in (("window", 1), ("context", 0), ("prompt_words", 0), ("compared_words", 1)):
            if not is_count(vars(self)[field], least):
                raise KdError(f"task.{field}: {vars(self)[field]}; wanted a whole number of at least {least}")
        if self.context >= self.window:
            raise KdError(
                f"task.context: {self.context}, in a window of {self.window}; wanted less than task.window, "
                "so that every window has tokens of its own"
            )
        self.decoding.check()

    def fields(self) -> tuple[str, ...]:
        """The field that an example must have."""
        return (self.text,)

    def text_fields(self) -> tuple[str, ...]:
        """All of them."""
        return self.fields()

    def held_out_fields(self) -> tuple[str, ...]:
        """None."""
        return ()

    def prompt_fields(self) -> tuple[str, ...]:
        """None: a text is prompt and reference at once."""
        return ()

    def symbols(self) -> tuple[str, ...]:
        """None."""
        return ()

    def encode(self, example: Example, tokenizer: Any) -> Iterator[Encoded]:
        """The text's tokens and its end, in windows; raises KdError if it has no tokens."""
        ids_N = encode_text(example[self.text], tokenizer)
        if len(ids_N) == 1:
            raise KdError(f"source: an example's {self.text} is {example[self.text][:30]!r}, no tokens; leave it out")
        yield from windows(ids_N, self.window, self.context)

    def encode_prompt(self, text: str, tokenizer: Any) -> np.ndarray:
        """The text's tokens, int32 [P]; no end, for it goes on."""
        return encode_text(text, tokenizer)[:-1]

    def prompt(self, example: Example) -> str:
        """The first words. Cut at a blank, whose pieces no others reach across: their ids begin the whole text's."""
        return first_words(example[self.text], self.prompt_words)

    def references_of(self, example: Example) -> list[str]:
        """The words behind the prompt that are compared; "" where the text is all prompt."""
        behind = example[self.text][len(self.prompt(example)) :]
        return [first_words(behind, self.compared_words).strip()]

    def closeness(self, hypothesis: str, reference: str) -> float:
        """Sentence BLEU with exponential smoothing (sacreBLEU), 0 to 100."""
        return sentence_bleu(hypothesis, [reference]).score

    @property
    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """The text's own words behind the prompt: what the measures of texts are to be read beside."""
        return {"real_text": lambda example: self.references_of(example)[0]}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Of the true texts bits per byte and perplexity; of those written distinct-2, repetition and self-BLEU."""
        return (
            bits_per_byte(lambda example: example[self.text]),
            Metric("perplexity", "perplexity", False, 2, "tokens", nll_and_tokens, perplexity, "by token"),
            Metric("distinct_2", "distinct-2", None, 3, "texts", new_bigrams, ratio, "words"),
            Metric("repetition", "rep-4", None, 3, "texts", repeated_fourgrams, ratio, "words"),
            Metric("self_bleu", "self-BLEU", None, 2, "texts", self_bleu, ratio, f"sacreBLEU, words, others:{OTHERS}"),
        )


def windows(ids_N: np.ndarray, window: int, context: int) -> Iterator[Encoded]:
    """A text cut so that every token counts once, and but for the first window has context before it.

    Args:
      ids_N: int32, a text and its end.
      window: tokens of a window, its context included.
      context: tokens before it, as its prompt; fewer than `window`.

    Examples:
      >>> [(one.prompt.tolist(), one.completion.tolist()) for one in windows(np.arange(7), window=4, context=2)]
      [([], [0, 1, 2, 3]), ([2, 3], [4, 5]), ([4, 5], [6])]
    """
    start = 0
    while start < len(ids_N):
        before = min(context, start)
        end = start + window - before
        prompt, completion = ids_N[start - before : start], ids_N[start:end]
        yield Encoded(prompt, completion, np.arange(before + len(completion)) >= before)
        start = end


def first_words(text: str, count: int) -> str:
    """A text up to its first blank behind so many words, as it stands.

    Examples:
      >>> first_words(" one  two three", 2), first_words("one", 2)
      (' one  two', 'one')
    """
    return re.match(rf"(?:[^\S{DROPPED}]*[\S{DROPPED}]+){{0,{count}}}", text)[0]


def nll_and_tokens(outcome: Outcome) -> np.ndarray:
    """Nats and tokens of each example, float64 [N, 2]."""
    return np.stack([outcome.nll_N, outcome.tokens_N], axis=1)


def perplexity(sums_S: np.ndarray) -> float:
    """exp of the mean nats of a token.

    Examples:
      >>> round(perplexity(np.array([3 * np.log(7), 3.0])), 9)
      7.0
    """
    return float(np.exp(ratio(sums_S)))


def compared(outcome: Outcome) -> list[list[str]]:
    """The words of each text, no more than its reference has."""
    pairs = zip(outcome.texts, outcome.references, strict=True)
    return [text.split()[: len(references[0].split())] for text, references in pairs]


def new_bigrams(outcome: Outcome) -> np.ndarray:
    """Word bigrams that stand nowhere before, in no earlier text either, and all, of each text, float64 [N, 2].

    So their sums give distinct-2: unique over all bigrams of the whole set. (A resample takes each text's numbers as
    they are, whatever it draws beside it: the interval is of them, not of the set's repetitions.)

    References:
      Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models, arXiv 1510.03055.

    Examples:
      >>> new_bigrams(Outcome([{}, {}], ["a b a b", "a b c"], [["a b a b"]] * 2)).tolist()
      [[2.0, 3.0], [1.0, 2.0]]
    """
    before, rows = set(), []
    for words in compared(outcome):
        bigrams = list(itertools.pairwise(words))
        rows.append((len(set(bigrams) - before), len(bigrams)))
        before.update(bigrams)
    return np.asarray(rows, np.float64)


def repeated_fourgrams(outcome: Outcome) -> np.ndarray:
    """Word 4-grams that stand earlier in the same text, and all, of each text, float64 [N, 2].

    Words, as the papers have it: people hardly ever repeat four of them in a short text, but four letters always.

    References:
      Welleck et al. 2020, arXiv 1908.04319, section 6 (seq-rep-4).

    Examples:
      >>> repeated_fourgrams(Outcome([{}], ["a b a b a b"], [["a b a b a b"]])).tolist()
      [[1.0, 3.0]]
    """
    fourgrams = [list(zip(*(words[i:] for i in range(4)), strict=False)) for words in compared(outcome)]
    return np.asarray([(len(text) - len(set(text)), len(text)) for text in fourgrams], np.float64)


def self_bleu(outcome: Outcome) -> np.ndarray:
    """BLEU-4 of each text against others of the set, 0 to 100, and 1, float64 [N, 2]; 0 and 0 without words or others.

    The others are at most `OTHERS`, evenly spread over the set, and the same at every call.

    References:
      Zhu et al. 2018, Texygen, arXiv 1802.01886.

    Examples:
      >>> self_bleu(Outcome([{}] * 3, ["a b c d", "a b c d", ""], [["a b c d"]] * 3)).tolist()
      [[100.0..., 1.0], [100.0..., 1.0], [0.0, 0.0]]
    """
    bleu, texts = BLEU(effective_order=True, tokenize="none"), [" ".join(words) for words in compared(outcome)]
    written = [i for i, text in enumerate(texts) if text]
    count = min(OTHERS, len(written) - 1)
    steps = [k * (len(written) - 1) // count for k in range(1, count + 1)]  # around the circle, short of itself
    rows = np.zeros((len(texts), 2))
    for place, i in enumerate(written):
        others = [texts[written[(place + step) % len(written)]] for step in steps]
        if others:
            rows[i] = bleu.sentence_score(texts[i], others).score, 1
    return rows
