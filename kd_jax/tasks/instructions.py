"""Instructions: what was asked and what is answered; scored by ROUGE-L and by the bits of the true answers."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from kd_jax.errors import KdError
from kd_jax.tasks.base import Counted, Decoding, Encoded, Example, check_counted, encode_pair, encode_prompt
from kd_jax.tasks.metrics import Metric, bits_per_byte, rouge, rouge_f


@dataclasses.dataclass(frozen=True)
class Instructions:
    """From the field `instruction` into the field `response`.

    Attributes:
      instruction: name of the text that is given, what it is about included.
      response: name of the text to write.
      language: of the responses, for ROUGE's words: "en" or another (kd_jax.tasks.metrics.rouge_f).
      counted: whether the loss is on the response alone or on the prompt too (decoder-only models).
      decoding: how responses are written.

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
    measuring = ("language", "decoding")

    def check(self) -> None:
        """Raises KdError naming the field that does not fit."""
        if self.instruction == self.response:
            raise KdError(f"task.response: {self.response!r}, as task.instruction; wanted two fields")
        check_counted(self.counted)
        self.decoding.check()

    def fields(self) -> tuple[str, ...]:
        """The fields that an example must have."""
        return (self.instruction, self.response)

    def text_fields(self) -> tuple[str, ...]:
        """All of them."""
        return self.fields()

    def held_out_fields(self) -> tuple[str, ...]:
        """None."""
        return ()

    def prompt_fields(self) -> tuple[str, ...]:
        """What an example without a response must have."""
        return (self.instruction,)

    def symbols(self) -> tuple[str, ...]:
        """None."""
        return ()

    def encode(self, example: Example, tokenizer: Any) -> Iterator[Encoded]:
        """The prompt's tokens and the response's; each with the end of the text, which parts them."""
        yield encode_pair(self.prompt(example), example[self.response], tokenizer, self.counted)

    def encode_prompt(self, text: str, tokenizer: Any) -> np.ndarray:
        """The prompt's tokens and the end of the text, int32 [P]."""
        return encode_prompt(text, tokenizer)

    def prompt(self, example: Example) -> str:
        """What is asked."""
        return example[self.instruction]

    def references_of(self, example: Example) -> list[str]:
        """The response."""
        return [example[self.response]]

    def closeness(self, hypothesis: str, reference: str) -> float:
        """ROUGE-L's F, 0 to 100."""
        return rouge_f("L", self.language, hypothesis, [reference])

    @property
    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """The prompt said again: what words in common are worth without an answer."""
        return {"echo": self.prompt}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """ROUGE-L by rouge-score, 0 to 100, and the bits per byte of what counts."""
        return rouge("L", self.language), bits_per_byte(self._counted_text)

    def _counted_text(self, example: Example) -> str:
        response = example[self.response]
        return self.prompt(example) + response if self.counted == "all" else response
