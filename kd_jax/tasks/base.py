"""What a task is: from text to tokens and back, how texts are written, and how they are measured."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from kd_jax.config import is_count, is_number
from kd_jax.errors import KdError
from kd_jax.tasks.metrics import Metric
from kd_jax.types import Example, Field

Counted = Literal["completion", "all"]


class Encoded(NamedTuple):
    """One example as token ids. A layout makes rows of it.

    Attributes:
      prompt: int32 [P], what is given, its end included; it may be empty.
      completion: int32 [C], what is to be written, its end included, behind what the tokeniser gives (its forced_prefix).
      counts: bool [P + C], which tokens count in the loss. Said here and nowhere else.
    """

    prompt: np.ndarray
    completion: np.ndarray
    counts: np.ndarray


ENCODED = {"prompt": Field((), "int32"), "completion": Field((), "int32"), "counts": Field((), "bool")}


def encode_pair(prompt: str, completion: str, tokenizer: Any, counted: Counted, most: int = 0) -> Encoded:
    """A prompt, as the tokeniser words it, and what follows it: what the tokeniser gives, the text, and its end.

    Args:
      prompt, completion: texts.
      tokenizer: a kd_jax.tokenizers.base.Tokenizer.
      counted: whether the loss is on the completion alone, or on the prompt too.
      most: tokens of the prompt's text at most, from its beginning; 0 for all.
    """
    given = encode_prompt(prompt, tokenizer, most)
    written = encode_text(completion, tokenizer)
    return append_completion(given, np.full(len(given), counted == "all"), tokenizer.forced_prefix, written)


def append_completion(prompt: np.ndarray, counts_P: np.ndarray, forced_prefix: Sequence[int], written: np.ndarray) -> Encoded:
    """A prompt and what is written behind it; what opens every completion is given, so it does not count.

    Examples:
      >>> encoded = append_completion(np.array([5, 2]), np.zeros(2, bool), (9,), np.array([7, 2]))
      >>> encoded.completion.tolist(), encoded.counts.astype(int).tolist()
      ([9, 7, 2], [0, 0, 0, 1, 1])
    """
    completion = np.asarray([*forced_prefix, *written], np.int32)
    counts = np.concatenate([counts_P, np.zeros(len(forced_prefix), bool), np.ones(len(written), bool)])
    return Encoded(prompt, completion, counts)


def encode_text(text: str, tokenizer: Any) -> np.ndarray:
    """Token ids and the end of the text, int32."""
    return np.asarray([*tokenizer.encode(text), tokenizer.eos], np.int32)


def encode_prompt(text: str, tokenizer: Any, most: int = 0) -> np.ndarray:
    """What is given, as the tokeniser words it, int32; of the text's tokens the first `most`, where `most` is not 0."""
    return np.asarray(tokenizer.encode_prompt(text, most), np.int32)


def check_counted(counted: str) -> None:
    """Raises KdError for another word than "completion" or "all"."""
    if counted not in ("completion", "all"):
        raise KdError(f"task.counted: {counted!r}; wanted completion or all")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits.

    Attributes:
      temperature: 0 for the likeliest token; else one is drawn from softmax(logits / temperature).
      top_k: draw from the k likeliest alone; 0 for all.
      top_p: draw from the fewest likeliest tokens whose probability reaches it (nucleus sampling); 1 for all.
      min_p: leave out tokens less likely than min_p times the likeliest; 0 for none.
      repetition_penalty: logits of tokens that stand in the prompt or were written are divided by it where positive,
        multiplied where negative; 1 for none.
      seed: decides the draws, together with the example's number.

    References:
      Holtzman et al. 2020, arXiv 1904.09751 (top_p); Nguyen et al. 2024, arXiv 2407.01082 (min_p);
      Keskar et al. 2019, arXiv 1909.05858, section 4.1 (repetition_penalty).

    Examples:
      >>> Sampling(temperature=0.8, top_p=0.95).check("task.decoding.sampling")
      >>> Sampling(top_p=1.5).check("task.decoding.sampling")
      Traceback (most recent call last):
      kd_jax.errors.KdError: task.decoding.sampling.top_p: 1.5; wanted more than 0 and at most 1
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def check(self, where: str) -> None:
        """Raises KdError naming the field below `where` that is out of its range."""
        ranges = {
            "temperature": (lambda x: 0 <= x <= 100, "0 (the likeliest) to 100"),
            "top_p": (lambda x: 0 < x <= 1, "more than 0 and at most 1"),
            "min_p": (lambda x: 0 <= x < 1, "at least 0 and less than 1"),
            "repetition_penalty": (lambda x: 0 < x <= 100, "more than 0 and at most 100"),
        }
        for field, (within, wanted) in ranges.items():
            value = vars(self)[field]
            if not (is_number(value) and within(value)):
                raise KdError(f"{where}.{field}: {value}; wanted {wanted}")
        for field in ("top_k", "seed"):
            if not is_count(vars(self)[field], 0):
                raise KdError(f"{where}.{field}: {vars(self)[field]}; wanted a whole number of at least 0")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a model writes what follows a prompt.

    Attributes:
      beam: width of the beam search, whose texts stand beside those written token by token; 1 for none.
      length_penalty: exponent of GNMT's length normalisation (arXiv 1609.08144, eq. 14).
      length_ratio: tokens written at most for each of the prompt's (padded) tokens, on top of `length`.
      length: see `length_ratio`.
      sampling: how each token is chosen where there is no beam.

    Examples:
      >>> decoding = Decoding(length_ratio=1.5, length=8)
      >>> decoding.max_length(20)  # tokens written for a prompt padded to 20
      38
      >>> decoding.ways
      ('greedy', 'beam')
    """

    beam: int = 4
    length_penalty: float = 0.6
    length_ratio: float = 1.5
    length: int = 8
    sampling: Sampling = Sampling()

    @property
    def ways(self) -> tuple[str, ...]:
        """What is written of every prompt; the first is what the metrics are about."""
        first = "sampled" if self.sampling.temperature else "greedy"
        return (first, "beam") if self.beam > 1 else (first,)

    def most(self, prompt_length: int) -> int:
        """The most tokens written for prompts of this padded length."""
        return int(self.length_ratio * prompt_length) + self.length

    def check(self) -> None:
        """Raises KdError naming the field that is out of its range."""
        for field, least in (("beam", 1), ("length", 0)):
            value = vars(self)[field]
            if not is_count(value, least):
                raise KdError(f"task.decoding.{field}: {value}; wanted a whole number of at least {least}")
        for field, (low, high) in {"length_penalty": (0.0, 5.0), "length_ratio": (0.0, 100.0)}.items():
            value = vars(self)[field]
            if not (is_number(value) and low <= value <= high):
                raise KdError(f"task.decoding.{field}: {value}; wanted {low:g} to {high:g}")
        if not self.length_ratio and not self.length:
            raise KdError("task.decoding.length: 0, and length_ratio too; wanted room for at least one token")
        self.sampling.check("task.decoding.sampling")


class Task(Protocol):
    """A frozen dataclass; pure functions, no I/O.

    Attributes:
      name: of the task.
      families: of the architectures that can serve it (models/base.py's Architecture.family).
      prompted: whether examples have a prompt; else a text stands for itself.
      counted: whether the loss is on completions alone or on prompts too.
      measuring: names of its fields that decide nothing before the evaluation.
      decoding: how texts are written.
    """

    name: str
    families: tuple[str, ...]
    prompted: bool
    counted: Counted
    measuring: tuple[str, ...]
    decoding: Decoding

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The first is the headline."""
        ...

    @property
    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """Name -> the text that needs no model, such as a document's lead; measured beside the models."""
        ...

    def check(self) -> None:
        """Raises KdError naming the field that is out of its range."""
        ...

    def fields(self) -> tuple[str, ...]:
        """The fields that every example must have, those of the prompt first; all are text."""
        ...

    def text_fields(self) -> tuple[str, ...]:
        """Those of `fields` that are text to be tokenised."""
        ...

    def held_out_fields(self) -> tuple[str, ...]:
        """Further ones of validation and test examples, such as other references."""
        ...

    def prompt_fields(self) -> tuple[str, ...]:
        """Those of `fields` that an example without a reference must have; () where there are none such."""
        ...

    def symbols(self) -> tuple[str, ...]:
        """Texts that the tokeniser must keep as one token each, such as language tags."""
        ...

    def encode(self, example: Example, tokenizer: Any) -> Iterable[Encoded]:
        """An example as token ids; several where a long text is cut."""
        ...

    def encode_prompt(self, text: str, tokenizer: Any) -> np.ndarray:
        """What is given alone, int32 [P]."""
        ...

    def prompt(self, example: Example) -> str:
        """What is given, as text."""
        ...

    def references_of(self, example: Example) -> list[str]:
        """What is to be written, as text: one or more; the first is the one to train on."""
        ...

    def similarity(self, hypothesis: str, reference: str) -> float:
        """How near one text is to another, for the choice among hypotheses."""
        ...
