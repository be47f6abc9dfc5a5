"""Hidden states and attention relations, for terms with the teacher in the training step."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from kd_jax.errors import KdError
from kd_jax.losses.base import Loss, LossKind
from kd_jax.signals.base import Level, Origin, check_integer
from kd_jax.types import Array, Params

Taps = Mapping[str, Array]
Pairs = tuple[tuple[int, int], ...]
Stack = Literal["encoder", "decoder"]
Projection = Literal["q", "k", "v"]
MASK_BIAS = -1e9


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """Hidden states after layers, compared by a distance such as mse or cosine (TinyBERT, arXiv 1909.10351, eq. 8).

    If the widths differ, each pair of layers has a learned projection of the student's vectors. It is trained with the
    student and is not part of it.

    Attributes:
      layers: (student's layer, teacher's layer) pairs.
      stack: "encoder" or "decoder".

    Examples:
      >>> taps = {"decoder_0.hidden": jnp.ones((1, 2, 4)), "decoder_2.hidden": jnp.zeros((1, 2, 4))}
      >>> signal = HiddenStates(layers=((0, 2),))
      >>> teacher, student = signal.align(taps, taps, jnp.ones((1, 2), bool), {})
      >>> student.shape, float(student.max()), float(teacher.max())  # layer 0 against layer 2
      ((1, 1, 2, 4), 1.0, 0.0)
    """

    layers: Pairs
    stack: Stack = "decoder"

    origin: ClassVar[Origin] = "step"
    level: ClassVar[Level] = "layers"
    loss_kind: ClassVar[LossKind] = "vectors"

    def check(self, vocab_size: int) -> None:
        """Check the ranges of all fields."""
        _check_pairs(self.stack, self.layers)

    def check_layers(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Check that both networks have the layers."""
        _check_depths(self.stack, self.layers, student, teacher)

    def check_widths(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Accept all widths: if they differ, a projection is learned."""

    def supports(self, loss: Loss) -> bool:
        """Return True: any distance between vectors is meaningful."""
        return True

    def uses_encoder(self) -> bool:
        """Return whether positions are those of the encoder instead of the decoder."""
        return self.stack == "encoder"

    def init_adapter(self, key: Array, student: Taps, teacher: Taps) -> Params:
        """Initialise the projections, scaled to preserve the root mean square of a vector's entries.

        Returns:
          {index of the pair: float32 [D of the student, D of the teacher]}; {} if the widths agree.
        """
        student_D, teacher_D = (taps[f"{self.stack}_0.hidden"].shape[-1] for taps in (student, teacher))
        if student_D == teacher_D:
            return {}
        keys = jax.random.split(key, len(self.layers))
        return {
            str(i): jax.random.normal(keys[i], (student_D, teacher_D)) * student_D**-0.5
            for i in range(len(self.layers))
        }

    def align(self, student: Taps, teacher: Taps, segment_BT: Array, adapter: Params) -> tuple[Array, Array]:
        """Return the hidden states of both sides, the student's projected to the teacher's width.

        Returns:
          (teacher_PBTD, student_PBTD) with P = pairs of layers.
        """
        student_states = [student[f"{self.stack}_{i}.hidden"] for i, _ in self.layers]
        if adapter:
            student_states = [x_BTD.astype(jnp.float32) @ adapter[str(i)] for i, x_BTD in enumerate(student_states)]
        return jnp.stack([teacher[f"{self.stack}_{j}.hidden"] for _, j in self.layers]), jnp.stack(student_states)


@dataclasses.dataclass(frozen=True)
class AttentionRelations:
    """Self-attention relations, compared by a divergence (MiniLMv2, arXiv 2012.15828, eq. 3-4).

    The queries of all heads are concatenated and split into `heads` relation heads, so both sides may differ in heads
    and widths. softmax(q q' / sqrt(d)) is a distribution over positions at every position. Keys and values likewise.
    The loss is the mean over pairs, kinds and relation heads.

    Attributes:
      layers: (student's layer, teacher's layer) pairs.
      stack: "encoder", or "decoder" (a position then relates to itself and earlier ones).
      heads: number of relation heads, a divisor of both widths of every kind.
      kinds: a selection of "q", "k", "v".

    Examples:
      >>> taps = {"encoder_0.q": jnp.zeros((1, 2, 4))}
      >>> signal = AttentionRelations(layers=((0, 0),), heads=1, kinds=("q",))
      >>> teacher, _ = signal.align(taps, taps, jnp.ones((1, 2), bool), {})
      >>> print(jnp.exp(teacher[0, 0]))  # equal queries: uniform over both positions
      [[0.5 0.5]
       [0.5 0.5]]
    """

    layers: Pairs
    stack: Stack = "encoder"
    heads: int = 8
    kinds: tuple[Projection, ...] = ("q", "k", "v")

    origin: ClassVar[Origin] = "step"
    level: ClassVar[Level] = "layers"
    loss_kind: ClassVar[LossKind] = "divergence"

    def check(self, vocab_size: int) -> None:
        """Check the ranges of all fields."""
        _check_pairs(self.stack, self.layers)
        if not self.kinds or set(self.kinds) - set(get_args(Projection)):
            raise KdError(f"signal.kinds: expected a selection of q, k, v, got {self.kinds!r}.")
        check_integer("heads", self.heads, 1, 2**16)

    def check_layers(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Check that both networks have the layers."""
        _check_depths(self.stack, self.layers, student, teacher)

    def check_widths(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Check that the relation heads divide the widths of all kinds."""
        for side, widths in (("student", student), ("teacher", teacher)):
            for kind in self.kinds:
                if widths[kind] % self.heads:
                    expected = f"a divisor of {widths[kind]}, the width of the {side}'s {kind}"
                    raise KdError(f"signal.heads: expected {expected}, got {self.heads}.")

    def supports(self, loss: Loss) -> bool:
        """Return True: any divergence is meaningful, since both sides are distributions."""
        return True

    def uses_encoder(self) -> bool:
        """Return whether positions are those of the encoder instead of the decoder."""
        return self.stack == "encoder"

    def init_adapter(self, key: Array, student: Taps, teacher: Taps) -> Params:
        """Return {}: relations need no projection."""
        return {}

    def align(self, student: Taps, teacher: Taps, segment_BT: Array, adapter: Params) -> tuple[Array, Array]:
        """Compute the log-probabilities of both sides' relations, between positions of one segment.

        Returns:
          (teacher_logp_PBTT, student_logp_PBTT) with P = pairs x kinds x heads.
        """
        visible_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
        if self.stack == "decoder":
            visible_BTT &= jnp.tri(segment_BT.shape[1], dtype=bool)[None]
        bias_BTT = jnp.where(visible_BTT, 0.0, MASK_BIAS)

        def relations(taps: Taps, layers: list[int]) -> Array:
            return jnp.concatenate(
                [self._relation(taps[f"{self.stack}_{i}.{kind}"], bias_BTT) for i in layers for kind in self.kinds]
            )

        return relations(teacher, [j for _, j in self.layers]), relations(student, [i for i, _ in self.layers])

    def _relation(self, x_BTD: Array, bias_BTT: Array) -> Array:
        """Return the log-probabilities of one layer's relations of one kind, [H, B, T, T]."""
        x_BTHd = x_BTD.reshape(*x_BTD.shape[:2], self.heads, -1)
        scores_HBTT = jnp.einsum("bthd,bshd->hbts", x_BTHd, x_BTHd) * x_BTHd.shape[-1] ** -0.5
        return jax.nn.log_softmax(scores_HBTT.astype(jnp.float32) + bias_BTT[None])


def _check_pairs(stack: str, layers: Pairs) -> None:
    if stack not in get_args(Stack):
        raise KdError(f"signal.stack: expected encoder or decoder, got {stack!r}.")
    are_pairs = type(layers) is tuple and all(type(pair) is tuple and len(pair) == 2 for pair in layers)
    if not are_pairs or not layers or any(type(layer) is not int or layer < 0 for pair in layers for layer in pair):
        expected = "pairs (student's layer, teacher's layer), for example ((0, 2),)"
        raise KdError(f"signal.layers: expected {expected}, got {layers!r}.")


def _check_depths(stack: str, layers: Pairs, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
    for pair in layers:
        for layer, (side, depths) in zip(pair, (("student", student), ("teacher", teacher)), strict=True):
            if stack not in depths:
                raise KdError(f"signal.stack: expected a stack of the {side} ({', '.join(depths)}), got {stack!r}.")
            if layer >= depths[stack]:
                expected = f"a layer of the {side}'s {stack}, 0 to {depths[stack] - 1}"
                raise KdError(f"signal.layers: expected {expected}, got {layer}.")
