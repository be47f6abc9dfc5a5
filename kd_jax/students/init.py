"""Initial parameters of a model: random, parts of the teacher or of another student, or a checkpoint."""

import dataclasses
import re
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.artifacts.workdir import TEACHER
from kd_jax.errors import KdError
from kd_jax.models.base import Architecture
from kd_jax.models.transformer import COMPUTE_FIELDS, Transformer
from kd_jax.students.narrow import (
    Scores,
    WidthRule,
    check_width_rule,
    check_widths,
    compensate,
    is_narrower,
    narrow,
    select_indices,
)
from kd_jax.types import Array, Params

# Fields of a Transformer in which a student may differ from its teacher; widths are checked by check_widths.
SIZES = ("d_model", "d_ff", "heads", "kv_heads", "head_dim", "head_scale", "layers", "encoder_layers", "decoder_layers")
LAYER_FIELDS = ("local", "unrotated")  # indices of decoder layers
FREE_FIELDS = (*SIZES, *COMPUTE_FIELDS, *LAYER_FIELDS, "window", "vocab_rows", "vocab_multiple")
# Parameters with an entry for each token, padding included: name -> the axis of tokens.
VOCAB_AXES = {"embedding": 0, "output": 1, "output_bias": 0}
EMBEDDINGS = (*VOCAB_AXES, "encoder_positions", "decoder_positions")


@dataclasses.dataclass(frozen=True)
class Random:
    """Random initial parameters.

    Examples:
      >>> Random()
      Random()
    """

    def check(self, teacher: Architecture, student: Architecture) -> None:
        """Accept any network."""


@dataclasses.dataclass(frozen=True)
class FromTeacher:
    """Initial parameters from some of the teacher's layers, heads, neurons and channels.

    A narrower student keeps heads, feed-forward neurons and channels as in Minitron (arXiv 2407.14679). A head keeps
    its width. If no width differs from the teacher's, only layers are selected.

    Attributes:
      encoder: the teacher's layer for each encoder layer of the student; empty for evenly spaced layers, the first and
      the
        last among them.
      decoder: the same for the decoder.
      width: the rule by which a narrower student's parts are selected: "importance", measured on the teacher's
        activations; or as controls the "first" parts, or "random" ones.
      sample: number of training examples on which the importance is measured, drawn by the experiment's seed.

    Examples:
      >>> from kd_jax.models.encoder_decoder import EncoderDecoder
      >>> teacher, student = EncoderDecoder(5, 3), EncoderDecoder(3, 1)  # layers of the encoder and the decoder
      >>> layer_maps(FromTeacher(decoder=(1,)), teacher, student)
      {'encoder': (0, 2, 4), 'decoder': (1,)}
    """

    encoder: tuple[int, ...] = ()
    decoder: tuple[int, ...] = ()
    width: WidthRule = "importance"
    sample: int = 256

    name: ClassVar[str] = TEACHER  # the model that the parameters are selected from, as in FromStudent

    def check(self, teacher: Architecture, student: Architecture) -> None:
        """Check that the student can start from the teacher."""
        layer_maps(self, teacher, student)
        check_width_rule(self.width, self.sample)


@dataclasses.dataclass(frozen=True)
class FromStudent:
    """Initial parameters from some of another student's layers, heads, neurons and channels.

    So a student is pruned and distilled in rounds. Signals and pseudo-targets are still the teacher's.

    Attributes:
      name: the other student, which comes before this one in the experiment and is trained first.
      encoder: that student's layer for each encoder layer of this one; empty for evenly spaced layers.
      decoder: the same for the decoder.
      width: as in FromTeacher; the importance is measured on that student's activations.
      sample: as in FromTeacher.

    Examples:
      >>> from kd_jax.models.decoder_only import DecoderOnly
      >>> deep, shallow = DecoderOnly(layers=4), DecoderOnly(layers=2)
      >>> layer_maps(FromStudent("deep"), deep, shallow)
      {'decoder': (0, 3)}
    """

    name: str
    encoder: tuple[int, ...] = ()
    decoder: tuple[int, ...] = ()
    width: WidthRule = "importance"
    sample: int = 256

    def check(self, teacher: Architecture, student: Architecture) -> None:
        """Check that the student can start from the other one, whose network `teacher` is."""
        layer_maps(self, teacher, student)
        check_width_rule(self.width, self.sample)


FromModel = FromTeacher | FromStudent  # parameters are selected from those of a model of the run


@dataclasses.dataclass(frozen=True)
class FromCheckpoint:
    """Initial parameters from another run, for example a small pretrained model.

    Attributes:
      folder: the folder of a trained model, for example runs/other/teacher, with the same shapes and vocabulary.

    Examples:
      >>> FromCheckpoint("runs/other/student").check(teacher=None, student=None)
      Traceback (most recent call last):
      kd_jax.errors.KdError: init.folder: expected the folder of a trained model, for example runs/x/teacher, \
got 'runs/other/student', which does not exist.
    """

    folder: str

    def check(self, teacher: Architecture | None, student: Architecture | None) -> None:
        """Check that the folder exists; its shapes are checked when it is read."""
        if not Path(self.folder).is_dir():
            raise KdError(
                "init.folder: expected the folder of a trained model, for example runs/x/teacher, "
                f"got {self.folder!r}, which does not exist."
            )


def evenly_spaced_layers(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Return evenly spaced layers, the first and the last among them; the first for a single one.

    Layer i of n is number i (teacher_layers - 1) / (n - 1), rounded, a half to the even number. Distil-Whisper (arXiv
    2311.00430, section 4) rounds down. DistilBART (arXiv 2010.13002) chose layers by hand. They are these for 6 layers
    to 3, 12 to 3 or 6, and 16 to 3, 4 or 6, and others for 12 to 4, for example: (0, 4, 8, 11).

    Examples:
      >>> evenly_spaced_layers(12, 4)
      (0, 4, 7, 11)
    """
    return tuple(int(i) for i in np.linspace(0, teacher_layers - 1, student_layers).round())


def layer_map(
    layers: tuple[int, ...], teacher_layers: int, student_layers: int, field: str, owner: str
) -> tuple[int, ...]:
    """Return the teacher's layer for each of the student's; an empty map gives evenly spaced layers."""
    expected = f"one of {owner} {teacher_layers} layers for each of the {student_layers} student layers"
    if student_layers > teacher_layers and not layers:
        raise KdError(f"{field}: expected {expected}, got (). Name them, one several times.")
    layers = layers or evenly_spaced_layers(teacher_layers, student_layers)
    if len(layers) != student_layers:
        raise KdError(f"{field}: expected {expected}, got {len(layers)} entries {layers}.")
    for layer in layers:
        if not 0 <= layer < teacher_layers:
            raise KdError(f"{field}: expected layers in [0, {teacher_layers - 1}], got {layer}.")
    return layers


def layer_maps(init: FromModel, teacher: Architecture, student: Architecture) -> dict[str, tuple[int, ...]]:
    """Return stack -> the layer of the model `init.name`, whose network `teacher` is, for each of the student's."""
    kind, owner = type(init).__name__, "the teacher's" if isinstance(init, FromTeacher) else f"{init.name}'s"
    if not (isinstance(teacher, Transformer) and isinstance(student, Transformer)) or student.family != teacher.family:
        raise KdError(f"model: expected {teacher.family}, {owner} family, for init={kind}, got {student.family}.")
    for field in dataclasses.fields(student):
        ours, theirs = getattr(student, field.name), getattr(teacher, field.name)
        if ours != theirs and field.name not in FREE_FIELDS:
            raise KdError(f"model.{field.name}: expected {owner} {theirs} for init={kind}, got {ours}.")
    check_widths(teacher, student, owner, kind)
    maps, depths = {"encoder": init.encoder, "decoder": init.decoder}, teacher.stacks()
    for stack, layers in maps.items():
        if layers and stack not in depths:
            raise KdError(f"init.{stack}: expected () for a {teacher.family} model without {stack}, got {layers}.")
    maps = {
        stack: layer_map(maps[stack], depths[stack], student_layers, f"init.{stack}", owner)
        for stack, student_layers in student.stacks().items()
    }
    for field, expected in layer_fields(teacher, maps["decoder"]).items():
        if getattr(student, field) != expected:
            raise KdError(
                f"model.{field}: expected {expected} for {owner} layers {maps['decoder']}, got "
                f"{getattr(student, field)}."
            )
    return maps


def layer_fields(teacher: Transformer, layers: tuple[int, ...]) -> dict[str, object]:
    """Return the fields of a student that depend on which decoder layers of the teacher it has.

    Examples:
      >>> from kd_jax.models.decoder_only import DecoderOnly
      >>> layer_fields(DecoderOnly(layers=4, local=(0, 1), window=8, unrotated=(3,)), (0, 3))
      {'local': (0,), 'unrotated': (1,), 'window': 8}
    """
    fields = {
        field: tuple(i for i, layer in enumerate(layers) if layer in getattr(teacher, field)) for field in LAYER_FIELDS
    }
    return {**fields, "window": teacher.window if fields["local"] else 0}


def init_from_teacher(
    init: FromModel,
    teacher: Architecture,
    student: Architecture,
    params: Params,
    vocab_size: int,
    scores: Scores | None = None,
) -> Params:
    """Return the student's parameters as a selection of the teacher's.

    With FromStudent, `teacher` and `params` are those of the other student. The arrays are the teacher's own if no
    width differs; then `scores` may be None. Each network pads the `vocab_size` tokens to its own multiple.
    """
    maps = layer_maps(init, teacher, student)
    assert isinstance(teacher, Transformer) and isinstance(student, Transformer)
    if is_narrower(teacher, student):
        assert scores is not None
        params = narrow(params, select_indices(teacher, student, scores))
    others = {name: value for name, value in params.items() if not re.fullmatch(r"(en|de)coder_\d+", name)}
    rows = student.embedding_rows(vocab_size)
    if teacher.embedding_rows(vocab_size) != rows:
        others |= {name: _resize(others[name], axis, rows) for name, axis in VOCAB_AXES.items() if name in others}
    layers = {f"{stack}_{i}": params[f"{stack}_{j}"] for stack, layers in maps.items() for i, j in enumerate(layers)}
    return compensate(teacher, student, others | layers)


def _resize(x: Array, axis: int, size: int) -> Array:
    """Truncate an axis, or pad it with zeros, to `size` entries."""
    x = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
    return jnp.pad(x, [(0, size - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])


def count_parameters(params: Params) -> tuple[int, int]:
    """Return (number of parameters, number outside embeddings, learned positions and the output layer)."""
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    return total, total - sum(int(np.prod(params[name].shape)) for name in EMBEDDINGS if name in params)


def random_params(model: Architecture, vocab_size: int, key: Array) -> Params:
    """Return random initial parameters."""
    return jax.jit(model.build(vocab_size).init)(key)
