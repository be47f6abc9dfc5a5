"""Instruction following: a response to an instruction, scored by ROUGE-L and bits per byte."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from kd_jax.errors import KdError
from kd_jax.tasks.base import Counted, Decoding, Encoded, check_counted, encode_pair, encode_prompt
from kd_jax.tasks.metrics import Metric, bits_per_byte, rouge, rouge_f
from kd_jax.types import Example

if TYPE_CHECKING:
    from kd_jax.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Instructions:
    """Generate the field `response` from the field `instruction`.

    Attributes:
      instruction: name of the field with the instruction and its input.
      response: name of the field with the response.
      language: of the responses: stems are those of English ("en"), other languages have none. References in other
        scripts have words of their own under any language (kd_jax.tasks.metrics.rouge_f).
      counted: "completion" for a loss on the response, "all" for a loss on the prompt too (decoder-only models).
      decoding: settings of generation.

    Examples:
      >>> task = Instructions()
      >>> example = {"prompt": "Name a colour.", "response": "Green."}
      >>> task.prompt(example), task.references_of(example)
      ('Name a colour.', ['Green.'])
    """

    instruction: str = "prompt"
    response: str = "response"
    language: str = "en"
    counted: Counted = "completion"
    decoding: Decoding = Decoding(beam=1, length_ratio=1.0, length=64)

    name = "instructions"
    families = ("encoder_decoder", "decoder_only")
    prompted = True
    evaluation_fields = ("language", "decoding")

    def check(self) -> None:
        """Raise KdError if a field is invalid."""
        if self.instruction == self.response:
            raise KdError(
                f"task.response: expected another field than task.instruction, got {self.response!r} for both."
            )
        check_counted(self.counted)
        self.decoding.check()

    def fields(self) -> tuple[str, ...]:
        """Return the fields of every example."""
        return (self.instruction, self.response)

    def text_fields(self) -> tuple[str, ...]:
        """Return all fields."""
        return self.fields()

    def held_out_fields(self) -> tuple[str, ...]:
        """Return no fields."""
        return ()

    def prompt_fields(self) -> tuple[str, ...]:
        """Return the field of an example without a response."""
        return (self.instruction,)

    def symbols(self) -> tuple[str, ...]:
        """Return no fields."""
        return ()

    def encode(self, example: Example, tokenizer: "Tokenizer") -> Iterator[Encoded]:
        """Yield the token ids of instruction and response, each with an end token."""
        yield encode_pair(self.prompt(example), example[self.response], tokenizer, self.counted)

    def encode_prompt(self, text: str, tokenizer: "Tokenizer") -> np.ndarray:
        """Return the token ids of an instruction with its end token, int32 [P]."""
        return encode_prompt(text, tokenizer)

    def prompt(self, example: Example) -> str:
        """Return the instruction."""
        return example[self.instruction]

    def references_of(self, example: Example) -> list[str]:
        """Return the response."""
        return [example[self.response]]

    def similarity(self, hypothesis: str, reference: str) -> float:
        """Return the F-measure of ROUGE-L, 0 to 100."""
        return rouge_f("L", self.language, hypothesis, [reference])

    @property
    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """Return the instruction itself, which shows the score of shared words alone."""
        return {"echo": self.prompt}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Return ROUGE-L (rouge-score, 0 to 100), and the bits per byte of the text that counts."""
        return rouge("L", self.language), bits_per_byte(self._counted_text)

    def _counted_text(self, example: Example) -> str:
        response = example[self.response]
        return self.prompt(example) + response if self.counted == "all" else response
