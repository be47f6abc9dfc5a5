"""What the teacher holds inside: hidden states and attention relations. For terms with the teacher in the step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from kd_jax.errors import KdError
from kd_jax.signals.base import check_whole
from kd_jax.types import Array, Params

Taps = Mapping[str, Array]
Pairs = tuple[tuple[int, int], ...]
Stack = Literal["encoder", "decoder"]
STACKS = ("encoder", "decoder")
MASKED = -1e9


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """What leaves a layer, compared vector by vector, with mse or cosine (TinyBERT, arXiv 1909.10351, eq. 8).

    Where the widths differ, each pair of layers has a learned projection of the student's vectors, which is
    trained along and never becomes part of the student.

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

    origin, level, kind = "step", "layers", "vectors"

    def check(self, vocab_size: int) -> None:
        """Refuses fields out of their ranges.

        Raises:
          KdError: names the field.
        """
        _check_pairs(self.stack, self.layers)

    def check_layers(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Refuses layers that a stack lacks; stack -> depth, such as {"encoder": 3, "decoder": 1}."""
        _check_depths(self.stack, self.layers, student, teacher)

    def check_widths(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Bears all widths: where they differ, a projection is learned."""

    def supports(self, loss: Callable[..., Array]) -> bool:
        """All distances between vectors."""
        return True

    def source(self) -> bool:
        return self.stack == "encoder"

    def init(self, key: Array, student: Taps, teacher: Taps) -> Params:
        """{"PAIR": [D student, D teacher]}, scaled to keep a vector's length; {} where the widths agree."""
        ours, theirs = (side[f"{self.stack}_0.hidden"].shape[-1] for side in (student, teacher))
        if ours == theirs:
            return {}
        keys = jax.random.split(key, len(self.layers))
        return {str(i): jax.random.normal(keys[i], (ours, theirs)) * ours**-0.5 for i in range(len(self.layers))}

    def align(self, student: Taps, teacher: Taps, segment_BT: Array, adapter: Params) -> tuple[Array, Array]:
        """(teacher_PBTD, student_PBTD), P = pairs; student projected to the teacher's width."""
        ours = [student[f"{self.stack}_{i}.hidden"] for i, _ in self.layers]
        if adapter:
            ours = [x_BTD.astype(jnp.float32) @ adapter[str(pair)] for pair, x_BTD in enumerate(ours)]
        return jnp.stack([teacher[f"{self.stack}_{j}.hidden"] for _, j in self.layers]), jnp.stack(ours)


@dataclasses.dataclass(frozen=True)
class AttentionRelations:
    """Self-attention relations, compared by a divergence (MiniLMv2, arXiv 2012.15828, eq. 3-4).

    The queries of all heads side by side are cut into `heads` relation heads, whatever heads and widths
    both sides have; softmax(q q' / sqrt(d)) is a distribution over positions at every position. Keys and
    values likewise. The loss is the mean over pairs, kinds and relation heads.

    Attributes:
      layers: (student's layer, teacher's layer) pairs.
      stack: "encoder", or "decoder" (a position then relates to those before it).
      heads: relation heads; they divide both widths of every kind.
      kinds: of "q", "k", "v".

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
    kinds: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")

    origin, level, kind = "step", "layers", "divergence"

    def check(self, vocab_size: int) -> None:
        """Refuses fields out of their ranges.

        Raises:
          KdError: names the field.
        """
        _check_pairs(self.stack, self.layers)
        if not self.kinds or set(self.kinds) - set("qkv"):
            raise KdError(f"signal.kinds: {self.kinds!r}; wanted some of q, k, v")
        check_whole("heads", self.heads, 1, 2**16, "at least 1, a divisor of both widths")

    def check_layers(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Refuses layers that a stack lacks; stack -> depth, such as {"encoder": 3, "decoder": 1}."""
        _check_depths(self.stack, self.layers, student, teacher)

    def check_widths(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Refuses relation heads that do not divide a width of the kinds that are compared.

        Raises:
          KdError: names the heads and the width.
        """
        for widths, whose in ((student, "student"), (teacher, "teacher")):
            for kind in self.kinds:
                if widths[kind] % self.heads:
                    wanted = f"a divisor of {widths[kind]}, the width of the {whose}'s {kind}"
                    raise KdError(f"signal.heads: {self.heads}; wanted {wanted}")

    def supports(self, loss: Callable[..., Array]) -> bool:
        """All divergences: both sides are distributions."""
        return True

    def source(self) -> bool:
        return self.stack == "encoder"

    def init(self, key: Array, student: Taps, teacher: Taps) -> Params:
        """{}: relations need no projection."""
        return {}

    def align(self, student: Taps, teacher: Taps, segment_BT: Array, adapter: Params) -> tuple[Array, Array]:
        """(teacher_logp_PBTT, student_logp_PBTT), P = pairs x kinds x heads."""
        seen_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
        if self.stack == "decoder":
            seen_BTT &= jnp.tri(segment_BT.shape[1], dtype=bool)[None]
        bias_BTT = jnp.where(seen_BTT, 0.0, MASKED)

        def relations(taps: Taps, layers: list[int]) -> Array:
            logp_HBTT = [
                self._relation(taps[f"{self.stack}_{i}.{kind}"], bias_BTT) for i in layers for kind in self.kinds
            ]
            return jnp.concatenate(logp_HBTT)

        return relations(teacher, [j for _, j in self.layers]), relations(student, [i for i, _ in self.layers])

    def _relation(self, x_BTD: Array, bias_BTT: Array) -> Array:
        x_BTHd = x_BTD.reshape(*x_BTD.shape[:2], self.heads, -1)
        scores_HBTT = jnp.einsum("bthd,bshd->hbts", x_BTHd, x_BTHd) * x_BTHd.shape[-1] ** -0.5
        return jax.nn.log_softmax(scores_HBTT.astype(jnp.float32) + bias_BTT[None])


def _check_pairs(stack: str, layers: Pairs) -> None:
    if stack not in STACKS:
        raise KdError(f"signal.stack: {stack!r}; wanted encoder or decoder")
    are_pairs = type(layers) is tuple and all(type(pair) is tuple and len(pair) == 2 for pair in layers)
    if not are_pairs or not layers or any(type(layer) is not int or layer < 0 for pair in layers for layer in pair):
        raise KdError(f"signal.layers: {layers!r}; wanted pairs (student's layer, teacher's layer), such as ((0, 2),)")


def _check_depths(stack: str, layers: Pairs, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
    for pair in layers:
        for layer, stacks, whose in zip(pair, (student, teacher), ("student", "teacher"), strict=True):
            if stack not in stacks:
                raise KdError(f"signal.stack: {stack!r}; wanted one of the {whose}'s: {', '.join(stacks)}")
            if layer >= stacks[stack]:
                raise KdError(f"signal.layers: {layer}; wanted 0 to {stacks[stack] - 1}, the {whose}'s {stack}")
