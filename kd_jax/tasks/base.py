"""The protocol of a task: text to token ids, decoding, and metrics; and what tasks share."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from kd_jax.config import MAX_BEAM, MAX_LENGTH, MAX_SEED, MAX_VOCAB, check_count, is_number
from kd_jax.errors import KdError
from kd_jax.tasks.metrics import Metric
from kd_jax.types import Example, Field

if TYPE_CHECKING:
    from kd_jax.tokenizers.base import Tokenizer

Counted = Literal["completion", "all"]


class Encoded(NamedTuple):
    """One example as token ids.

    Attributes:
      prompt: int32 [P], with its end token; may be empty.
      completion: int32 [C], with its end token, and with the tokenizer's forced prefix at the front.
      counts: bool [P + C], whether a token counts in the loss.
    """

    prompt: np.ndarray
    completion: np.ndarray
    counts: np.ndarray


ENCODED = {"prompt": Field((), "int32"), "completion": Field((), "int32"), "counts": Field((), "bool")}


def encode_pair(
    prompt: str, completion: str, tokenizer: "Tokenizer", counted: Counted, max_prompt_tokens: int = 0
) -> Encoded:
    """Encode a prompt and its completion, each with its end token.

    The tokenizer may add a chat template to the prompt, whose text is truncated to `max_prompt_tokens`, 0 for all.
    """
    prompt_P = encode_prompt(prompt, tokenizer, max_prompt_tokens)
    completion_C = encode_text(completion, tokenizer)
    return append_completion(prompt_P, np.full(len(prompt_P), counted == "all"), tokenizer.forced_prefix, completion_C)


def append_completion(
    prompt: np.ndarray, counts_P: np.ndarray, forced_prefix: Sequence[int], completion: np.ndarray
) -> Encoded:
    """Return an encoded example; the forced prefix stands before the completion and does not count."""
    ids = np.asarray([*forced_prefix, *completion], np.int32)
    counts = np.concatenate([counts_P, np.zeros(len(forced_prefix), bool), np.ones(len(completion), bool)])
    return Encoded(prompt, ids, counts)


def encode_text(text: str, tokenizer: "Tokenizer") -> np.ndarray:
    """Return the token ids of a text and the end token, int32."""
    return np.asarray([*tokenizer.encode(text), tokenizer.eos], np.int32)


def encode_prompt(text: str, tokenizer: "Tokenizer", max_tokens: int = 0) -> np.ndarray:
    """Return the token ids of a prompt, int32; its text is truncated to `max_tokens` tokens, 0 for all."""
    return np.asarray(tokenizer.encode_prompt(text, max_tokens), np.int32)


def check_counted(counted: str) -> None:
    """Raise KdError if `counted` is not "completion" or "all"."""
    if counted not in ("completion", "all"):
        raise KdError(f"task.counted: expected completion or all, got {counted!r}. Set `--task.counted`.")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Choice of the next token from the logits.

    Attributes:
      temperature: 0 for the most probable token; above 0 a token is drawn from softmax(logits / temperature).
      top_k: draw from the k most probable tokens; 0 for all.
      top_p: draw from the smallest set of most probable tokens whose probability reaches it (nucleus sampling);
        1 for all.
      min_p: exclude tokens whose probability is below min_p times the highest one; 0 for none.
      repetition_penalty: divides positive logits, and multiplies negative logits, of tokens that were generated, or
        that are in a decoder-only model's prompt; 1 for none. As in transformers, start and forced tokens count.
      seed: decides the draws, together with the number of the example.

    References:
      Holtzman et al. 2020, arXiv 1904.09751 (top_p); Nguyen et al. 2024, arXiv 2407.01082 (min_p);
      Keskar et al. 2019, arXiv 1909.05858, section 4.1 (repetition_penalty).

    Examples:
      >>> Sampling(temperature=0.8, top_p=0.95).check("task.decoding.sampling")
      >>> Sampling(top_p=1.5).check("task.decoding.sampling")
      Traceback (most recent call last):
      kd_jax.errors.KdError: task.decoding.sampling.top_p: expected a number above 0 and at most 1, got 1.5.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def check(self, path: str) -> None:
        """Raise KdError if a field is out of its range; `path` is the field of this object."""
        ranges = {
            "temperature": (lambda x: 0 <= x <= 100, "from 0 to 100"),
            "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
            "min_p": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
            "repetition_penalty": (lambda x: 0 < x <= 100, "above 0 and at most 100"),
        }
        for field, (in_range, expected) in ranges.items():
            value = getattr(self, field)
            if not (is_number(value) and in_range(value)):
                raise KdError(f"{path}.{field}: expected a number {expected}, got {value}.")
        check_count(f"{path}.top_k", self.top_k, 0, MAX_VOCAB)
        check_count(f"{path}.seed", self.seed, 0, MAX_SEED)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Generation of a completion from a prompt.

    Attributes:
      beam: width of beam search, whose texts are reported beside those generated token by token; 1 for none.
      length_penalty: exponent of GNMT's length normalization (arXiv 1609.08144, eq. 14).
      length_ratio: maximum number of generated tokens for each (padded) token of the prompt, added to `length`.
      length: constant part of the maximum number of generated tokens.
      sampling: choice of each token without beam search; its repetition_penalty counts in beam search too.
      min_length: least number of tokens of a text, without its end token and forced ones.
      no_repeat_ngram: length of n-grams that a text has only once; in a decoder-only model the prompt is part of the
        text. 0 for no limit. Summarisers such as BART were tuned with 3.
      no_source_ngram: length of n-grams that a text must not copy from the prompt; 0 for no limit.

    Examples:
      >>> decoding = Decoding(length_ratio=1.5, length=8)
      >>> decoding.max_length(20)  # of a prompt padded to 20 tokens
      38
      >>> decoding.ways
      ('greedy', 'beam')
    """

    beam: int = 4
    length_penalty: float = 0.6
    length_ratio: float = 1.5
    length: int = 8
    sampling: Sampling = Sampling()
    min_length: int = 0
    no_repeat_ngram: int = 0
    no_source_ngram: int = 0

    @property
    def ways(self) -> tuple[str, ...]:
        """Return the ways of decoding to evaluate; the metrics of the first one are the headline."""
        first = "sampled" if self.sampling.temperature else "greedy"
        return (first, "beam") if self.beam > 1 else (first,)

    def max_length(self, prompt_length: int) -> int:
        """Return the maximum number of generated tokens for prompts of this padded length."""
        return int(self.length_ratio * prompt_length) + self.length

    def replace(
        self,
        beam: int = 1,
        length: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> "Decoding":
        """Return these settings with changes; None keeps a value.

        Args:
          beam: width of beam search; 1 for none, whatever it is here.
          length: maximum number of generated tokens, in place of `length` and `length_ratio`.
          temperature: as Sampling.temperature.
          top_k: as Sampling.top_k.
          top_p: as Sampling.top_p.
          min_p: as Sampling.min_p.
          repetition_penalty: as Sampling.repetition_penalty.
          seed: as Sampling.seed.

        Raises:
          KdError: if a value is out of its range, or beam search is combined with sampling.

        Examples:
          >>> Decoding().replace(length=64, temperature=0.7).ways
          ('sampled',)
        """
        options = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
        }
        changes: dict[str, Any] = {field: value for field, value in options.items() if value is not None}
        changed = dataclasses.replace(self, beam=beam, sampling=dataclasses.replace(self.sampling, **changes))
        if length is not None:
            changed = dataclasses.replace(changed, length=length, length_ratio=0.0)
        changed.check()
        if beam > 1 and changes:
            field = next(iter(changes))
            raise KdError(
                f"task.decoding.beam: expected 1 with the sampling option {field}, got {beam}. Remove one of them."
            )
        return changed

    def check(self) -> None:
        """Raise KdError if a field is out of its range."""
        check_count("task.decoding.beam", self.beam, 1, MAX_BEAM)
        for field in ("length", "min_length", "no_repeat_ngram", "no_source_ngram"):
            check_count(f"task.decoding.{field}", getattr(self, field), 0, MAX_LENGTH)
        for field, (low, high) in {"length_penalty": (0.0, 5.0), "length_ratio": (0.0, 100.0)}.items():
            value = getattr(self, field)
            if not (is_number(value) and low <= value <= high):
                raise KdError(f"task.decoding.{field}: expected a number from {low:g} to {high:g}, got {value}.")
        if not self.length_ratio and not self.length:
            raise KdError("task.decoding.length: expected at least 1 if length_ratio is 0, got 0.")
        self.sampling.check("task.decoding.sampling")


class Task(Protocol):
    """A task. Implementations are frozen dataclasses with pure functions, without I/O."""

    @property
    def name(self) -> str:
        """Return the task's name."""
        ...

    @property
    def families(self) -> tuple[str, ...]:
        """Return the families of architectures that can do the task (Architecture.family)."""
        ...

    @property
    def prompted(self) -> bool:
        """Return whether examples have a prompt and a completion; else each is one text."""
        ...

    @property
    def counted(self) -> Counted:
        """Return whether the loss is on completions or on prompts too."""
        ...

    @property
    def evaluation_fields(self) -> tuple[str, ...]:
        """Return the names of the fields that decide no data: evaluation and the choice of checkpoints read them."""
        ...

    @property
    def decoding(self) -> Decoding:
        """Return the settings of generation."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics; the first is the headline."""
        ...

    @property
    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """Return name -> function of an example: a text without a model, evaluated beside the models."""
        ...

    def check(self) -> None:
        """Raise KdError if a field is out of its range."""
        ...

    def fields(self) -> tuple[str, ...]:
        """Return the fields of every example, those of the prompt first; all are text."""
        ...

    def text_fields(self) -> tuple[str, ...]:
        """Return those of `fields` that are tokenized."""
        ...

    def held_out_fields(self) -> tuple[str, ...]:
        """Return further fields of validation and test examples, such as more references."""
        ...

    def prompt_fields(self) -> tuple[str, ...]:
        """Return those of `fields` that an example without a reference has; () if there are no such examples."""
        ...

    def symbols(self) -> tuple[str, ...]:
        """Return texts that the tokenizer must keep as single tokens, such as language tags."""
        ...

    def encode(self, example: Example, tokenizer: "Tokenizer") -> Iterable[Encoded]:
        """Return an example as token ids; several parts if a long text is split."""
        ...

    def encode_prompt(self, text: str, tokenizer: "Tokenizer") -> np.ndarray:
        """Return the token ids of a prompt, int32 [P]."""
        ...

    def prompt(self, example: Example) -> str:
        """Return the prompt of an example."""
        ...

    def references_of(self, example: Example) -> list[str]:
        """Return the references of an example; the first one is the target in training."""
        ...

    def similarity(self, hypothesis: str, reference: str) -> float:
        """Return the similarity of two texts, by which PseudoTargets selects hypotheses."""
        ...
