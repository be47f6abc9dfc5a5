"""Protocols of signals, their arrays on one support, and checks of their fields."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeGuard, get_args, runtime_checkable

from kd_jax.config import check_count, is_number
from kd_jax.errors import KdError
from kd_jax.losses.base import Loss, LossKind
from kd_jax.types import Array, Field, Params, Payload

Origin = Literal["cache", "step"]
Level = Literal["logits", "chunks", "layers"]
Tail = Literal["bucket", "renormalise", "zero"]
TAILS: tuple[Tail, ...] = get_args(Tail)


class Aligned(NamedTuple):
    """The distributions of both sides on one support.

    Attributes:
      teacher_logp_NK: float32 [N, K], the teacher's log-probabilities.
      student_logp_NK: float32 [N, K], the student's.
      log_z_N: float32 [N], the log-sum-exp of the student's logits over the temperature; None if it was not computed.
    """

    teacher_logp_NK: Array
    student_logp_NK: Array
    log_z_N: Array | None = None


@runtime_checkable
class Signal(Protocol):
    """The teacher's knowledge for a term: a frozen dataclass with pure functions.

    Attributes:
      origin: "cache" if it is written before training, "step" if the teacher runs in the training step.
      level: "logits" if it compares predictions of target tokens, "chunks" if it compares likelihoods of chunks of
        text, "layers" if it compares vectors at every position.
      loss_kind: the kind of loss that it feeds.
    """

    origin: ClassVar[Origin]
    level: ClassVar[Level]
    loss_kind: ClassVar[LossKind]

    def check(self, vocab_size: int) -> None:
        """Check the ranges of all fields.

        Args:
          vocab_size: number of tokens of the tokeniser.

        Raises:
          KdError: names the first field out of its range.
        """
        ...

    def supports(self, loss: Loss) -> bool:
        """Return whether a loss of its kind is meaningful on this signal."""
        ...


@runtime_checkable
class LogitSignal(Signal, Protocol):
    """The teacher's knowledge about each next token."""

    @property
    def temperature(self) -> Any:
        """The temperature of both softmaxes: a number, or a schedule if the teacher runs in the step."""
        ...

    @property
    def name(self) -> str:
        """The name of the cache's folder and of the batch's payload."""
        ...

    def schema(self, vocab_size: int) -> Mapping[str, Field] | None:
        """Return the cached fields per target token; None if nothing is cached."""
        ...

    def required_schema(self, vocab_size: int) -> Mapping[str, Field] | None:
        """Return the cached fields that `align` reads; None if nothing is cached."""
        ...

    def merge(self, other: Any) -> "LogitSignal":
        """Return the smallest signal whose cache serves this one and another of the same name."""
        ...

    def reduce(self, logits_NV: Array, key_N: Array) -> Payload:
        """Reduce teacher logits to the payload.

        Args:
          logits_NV: float [N, V].
          key_N: one random key per token.

        Returns:
          Field name -> array [N, ...].
        """
        ...

    def align(self, logits_NV: Array, payload: Payload, temperature: Any) -> Aligned:
        """Compute both distributions on one support.

        Args:
          logits_NV: float [N, V], the student's.
          payload: the teacher's, as from `reduce`.
          temperature: a number, or a traced scalar.
        """
        ...


@runtime_checkable
class ChunkSignal(Signal, Protocol):
    """The teacher's likelihood of each chunk of text."""

    @property
    def temperature(self) -> Any:
        """The root of both likelihoods."""
        ...

    @property
    def name(self) -> str:
        """The name of the cache's folder and of the batch's payload, with the fields `logp` and `place`."""
        ...

    def align(self, student_logp_N: Array, payload: Payload, temperature: Any) -> Aligned:
        """Compute both distributions at each target; they have a meaning where a chunk ends."""
        ...


@runtime_checkable
class FeatureSignal(Signal, Protocol):
    """The teacher's knowledge inside its layers, for terms with the teacher in the step."""

    def check_layers(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Check that both networks have the layers.

        Args:
          student: stack -> depth, for example {"encoder": 3, "decoder": 1}.
          teacher: the same of the teacher.

        Raises:
          KdError: names the stack or the layer.
        """
        ...

    def check_widths(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Check that vectors of these widths can be compared.

        Args:
          student: name of a vector -> its width, as an architecture's `widths`.
          teacher: the same of the teacher.

        Raises:
          KdError: names the field and the width.
        """
        ...

    def uses_encoder(self) -> bool:
        """Return whether positions are those of the encoder instead of the decoder."""
        ...

    def init_adapter(self, key: Array, student: Mapping[str, Array], teacher: Mapping[str, Array]) -> Params:
        """Initialise the trained parameters of the comparison.

        Args:
          key: random key.
          student: tap -> array, of which only the shapes are used.
          teacher: the same of the teacher.

        Returns:
          The parameters; {} if there are none.
        """
        ...

    def align(
        self, student: Mapping[str, Array], teacher: Mapping[str, Array], segment_BT: Array, adapter: Params
    ) -> tuple[Array, Array]:
        """Return the vectors to compare.

        Args:
          student: tap -> [B, T, ...].
          teacher: the same of the teacher.
          segment_BT: segments of the positions.
          adapter: parameters as from `init_adapter`.

        Returns:
          (teacher_PBTX, student_PBTX): P comparisons at every position, for a loss over X.
        """
        ...


def compares_logits(signal: Signal | None) -> TypeGuard[LogitSignal]:
    """Return whether a term's signal compares predictions."""
    return signal is not None and signal.level == "logits"


def compares_chunks(signal: Signal | None) -> TypeGuard[ChunkSignal]:
    """Return whether a term's signal compares likelihoods of chunks."""
    return signal is not None and signal.level == "chunks"


def compares_layers(signal: Signal | None) -> TypeGuard[FeatureSignal]:
    """Return whether a term's signal compares layers."""
    return signal is not None and signal.level == "layers"


def check_integer(field: str, value: Any, least: int, greatest: int) -> None:
    """Check that a field of a signal is an integer in [least, greatest]."""
    check_count(f"signal.{field}", value, least, greatest)


def check_temperature(value: Any) -> None:
    """Check that a temperature is a positive number, not a schedule: a cache holds fixed temperatures."""
    if not (is_number(value) and value > 0):
        remedy = "A temperature that changes needs signal=Online(...)." if callable(value) else ""
        raise KdError(f"signal.temperature: expected a positive number, got {value!r}. {remedy}".rstrip())


def check_tail(value: Any) -> None:
    """Check that a tail rule is one of TAILS."""
    if value not in TAILS:
        raise KdError(f"signal.tail: expected one of {', '.join(TAILS)}, got {value!r}.")


def id_dtype(vocab_size: int) -> str:
    """Return the smallest unsigned dtype that holds every token's id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"
