"""What signals share: the protocols by which others see them, both sides on one support, the checks of fields."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from kd_jax.config import is_number
from kd_jax.errors import KdError
from kd_jax.losses.base import Kind
from kd_jax.types import Array, Field, Params, Payload

TAILS = ("bucket", "renormalise", "zero")
Tail = Literal["bucket", "renormalise", "zero"]


class Aligned(NamedTuple):
    """Both distributions on one support.

    Attributes:
      teacher_logp_NK, student_logp_NK: float32 [N, K].
      log_z_N: log-sum-exp of the student's logits over the temperature, where it came for nothing; else None.
    """

    teacher_logp_NK: Array
    student_logp_NK: Array
    log_z_N: Array | None = None


@runtime_checkable
class Knowledge(Protocol):
    """What a teacher gives to a term, as the check of an objective sees it.

    Attributes:
      origin: where the teacher speaks: "cache" (before training) or "step" (beside the student).
      level: what is compared: "logits" of every target token, or "layers" at every position.
      kind: of the losses that it feeds.
    """

    origin: Literal["cache", "step"]
    level: Literal["logits", "layers"]
    kind: Kind

    def check(self, vocab_size: int) -> None:
        """Raises a KdError that names the first field out of its range."""
        ...

    def supports(self, loss: Callable[..., Array]) -> bool:
        """Whether a loss of its kind means something on what it gives."""
        ...


@runtime_checkable
class Signal(Knowledge, Protocol):
    """What the teacher says about each next token. A frozen dataclass; pure functions, no I/O."""

    temperature: Any

    @property
    def name(self) -> str:
        """Names the cache's folder and the batch's payload."""
        ...

    def schema(self, vocab_size: int) -> Mapping[str, Field] | None:
        """Fields stored per target token; None where the teacher stands in the step and nothing is stored."""
        ...

    def reads(self, vocab_size: int) -> Mapping[str, Field] | None:
        """Those of the schema's fields that `align` reads."""
        ...

    def covering(self, other: "Signal") -> "Signal":
        """The smallest signal from whose cache both this one and `other` can be read."""
        ...

    def reduce(self, logits_NV: Array, key_N: Array) -> Payload:
        """Teacher logits to payload, [N, ...] per field, on the device; key_N: one random key per token."""
        ...

    def align(self, logits_NV: Array, payload: Payload, temperature: Any) -> Aligned:
        """Student logits and payload to both distributions on one support."""
        ...


@runtime_checkable
class Features(Knowledge, Protocol):
    """What the teacher holds inside, for a term with the teacher in the step. A frozen dataclass; no I/O."""

    def check_layers(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Raises a KdError for a layer that a stack lacks; stack -> depth, such as {"encoder": 3, "decoder": 1}."""
        ...

    def check_widths(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Raises a KdError if it cannot compare vectors of these widths, as an architecture's `widths`."""
        ...

    def source(self) -> bool:
        """Whether its positions are those of the source (else of the target)."""
        ...

    def init(self, key: Array, student: Mapping[str, Array], teacher: Mapping[str, Array]) -> Params:
        """Trained parameters of the comparison, from the shapes of both sides' taps; {} for none."""
        ...

    def align(self, student: Mapping[str, Array], teacher: Mapping[str, Array], segment_BT: Array, adapter: Params):
        """(teacher_PBTX, student_PBTX): P comparisons at every position, for a loss over X."""
        ...


def check_whole(field: str, value: Any, least: int, greatest: int, remedy: str) -> None:
    """Refuses what is no whole number in a range.

    Raises:
      KdError: signal.FIELD, the value, the remedy.
    """
    if type(value) is not int or not least <= value <= greatest:
        raise KdError(f"signal.{field}: {value!r}; wanted {remedy}")


def check_temperature(value: Any) -> None:
    """Refuses what is no positive, finite number; a Schedule too: a cache holds fixed temperatures.

    Raises:
      KdError: names the field and the value.
    """
    if not (is_number(value) and value > 0):
        raise KdError(f"signal.temperature: {value!r}; wanted a positive number (for a Schedule wanted Online)")


def check_tail(value: Any) -> None:
    """Refuses a misspelt tail.

    Raises:
      KdError: names the field, the value and those there are.
    """
    if value not in TAILS:
        raise KdError(f"signal.tail: {value!r}; wanted bucket, renormalise or zero")


def id_dtype(vocab_size: int) -> str:
    """The smallest unsigned dtype that holds every token's id.

    Examples:
      >>> id_dtype(65_536), id_dtype(65_537)
      ('uint16', 'uint32')
    """
    return "uint16" if vocab_size <= 2**16 else "uint32"
