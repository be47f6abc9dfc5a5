"""Where a model's first parameters come from: chance, a teacher's layers, or a checkpoint."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.errors import KdError
from kd_jax.models.base import Architecture
from kd_jax.models.transformer import COMPUTE_FIELDS
from kd_jax.students.narrow import Scores, Width, check_choice, check_widths, compensate, kept, narrow, narrower
from kd_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Random:
    """Freshly drawn parameters.

    Examples:
      >>> Random().origin
      'chance'
    """

    origin = "chance"

    def check(self, teacher: Architecture, student: Architecture) -> None:
        """Any network can be drawn."""


@dataclasses.dataclass(frozen=True)
class FromTeacher:
    """The teacher's own layers, some left out, and in a narrower student some of their heads, neurons and channels.

    Heads, the feed-forward layers' neurons and the model's channels are chosen as Minitron does (arXiv 2407.14679);
    a head keeps its width. Where all widths are the teacher's, nothing is chosen.

    Attributes:
      encoder: for each encoder layer of the student, the teacher's layer it starts as; empty for
        evenly spaced layers, the first and the last among them.
      decoder: the same for the decoder.
      width: what a narrower student keeps: by "importance", measured on the teacher's activations; as controls the
        "first" of everything, or "random" ones.
      sample: training examples that the importance is measured on; the seed draws them.

    Examples:
      >>> from kd_jax.models.encoder_decoder import EncoderDecoder
      >>> teacher, student = EncoderDecoder(5, 3), EncoderDecoder(3, 1)  # layers of the encoder and the decoder
      >>> layer_maps(FromTeacher(decoder=(1,)), teacher, student)
      {'encoder': (0, 2, 4), 'decoder': (1,)}
    """

    encoder: tuple[int, ...] = ()
    decoder: tuple[int, ...] = ()
    width: Width = "importance"
    sample: int = 256

    origin = "teacher"

    def check(self, teacher: Architecture, student: Architecture) -> None:
        """Raises KdError where the student is not a smaller teacher, a layer map does not fit, or a field's value."""
        layer_maps(self, teacher, student)
        check_choice(self.width, self.sample)


@dataclasses.dataclass(frozen=True)
class FromCheckpoint:
    """Parameters of another run, such as a small pretrained model.

    Attributes:
      folder: a trained model's folder, such as runs/other/teacher; its shapes and vocabulary must be
        the student's.

    Examples:
      >>> FromCheckpoint("runs/other/student").check(teacher=None, student=None)
      Traceback (most recent call last):
      kd_jax.errors.KdError: init.folder: 'runs/other/student': no such folder; \
wanted a trained model's, as runs/x/teacher
    """

    folder: str

    origin = "checkpoint"

    def check(self, teacher: Architecture, student: Architecture) -> None:
        """Its shapes are compared when it is read; raises KdError if there is no such folder."""
        if not Path(self.folder).is_dir():
            raise KdError(f"init.folder: {self.folder!r}: no such folder; wanted a trained model's, as runs/x/teacher")


def spaced(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Evenly spaced layers, the first and the last among them; a single one is the first.

    As DistilBART and Distil-Whisper choose them (arXiv 2010.13002, section 3; arXiv 2311.00430, section 4).
    """
    return tuple(int(i) for i in np.linspace(0, teacher_layers - 1, student_layers).round())


def layer_map(given: tuple[int, ...], teacher_layers: int, student_layers: int, field: str) -> tuple[int, ...]:
    """The map that was asked for, or an evenly spaced one.

    Raises:
      KdError: if it has not one entry per student layer, or names a layer that the teacher lacks.
    """
    if student_layers > teacher_layers and not given:
        raise KdError(f"{field}: {student_layers} student layers from {teacher_layers}; name a teacher layer for each")
    layers = given or spaced(teacher_layers, student_layers)
    if len(layers) != student_layers:
        raise KdError(
            f"{field}: {len(layers)} entries {layers}; wanted one for each of {student_layers} student layers"
        )
    for layer in layers:
        if not 0 <= layer < teacher_layers:
            raise KdError(f"{field}: layer {layer}; wanted 0 to {teacher_layers - 1}")
    return layers


def layer_maps(init: FromTeacher, teacher: Architecture, student: Architecture) -> dict[str, tuple[int, ...]]:
    """Stack -> the teacher's layer that each of the student's starts as.

    Raises:
      KdError: where other hyper-parameters than the sizes differ, the student is wider, or a layer map does not fit.
    """
    if student.family != teacher.family:
        raise KdError(f"model: {student.family}, the teacher's is {teacher.family}; init=FromTeacher wants one family")
    for field in dataclasses.fields(student):
        ours, theirs = vars(student)[field.name], vars(teacher)[field.name]
        if ours != theirs and not _may_differ(field.name):
            raise KdError(f"model.{field.name}: {ours}, the teacher's is {theirs}; init=FromTeacher wants them equal")
    check_widths(teacher, student)
    depths = teacher.stacks()
    for stack in ("encoder", "decoder"):
        if vars(init)[stack] and stack not in depths:
            raise KdError(f"init.{stack}: {vars(init)[stack]}; a {teacher.family} model has no {stack}, wanted ()")
    maps = {
        stack: layer_map(vars(init)[stack], depths[stack], layers, f"init.{stack}")
        for stack, layers in student.stacks().items()
    }
    local = tuple(i for i, layer in enumerate(maps["decoder"]) if layer in teacher.local)
    if student.local != local:
        raise KdError(f"model.local: {student.local}; the layers {maps['decoder']} of the teacher want {local}")
    return maps


def _may_differ(field: str) -> bool:
    """Whether a student can start from its teacher whatever this field of both is; widths are checked by themselves."""
    sizes = ("d_model", "d_ff", "heads", "kv_heads", "head_dim", "head_scale")
    return field.endswith("layers") or field in (*sizes, *COMPUTE_FIELDS, "local", "vocab_rows", "vocab_multiple")


def shrink(
    init: FromTeacher,
    teacher: Architecture,
    student: Architecture,
    params: Params,
    vocab_size: int,
    scores: Scores | None = None,
) -> Params:
    """The student's parameters as a selection of the teacher's.

    Args:
      init: which layers.
      teacher, student: the two networks; all but sizes, dropout and the vocabulary's padding must agree.
      params: the teacher's parameters.
      vocab_size: of the tokeniser; both may pad it, each to its own multiple.
      scores: of what a narrower student may leave out, as `narrow.scored`; None where no width differs.

    Returns:
      A tree of the student's structure; where no width differs it shares the teacher's arrays.

    Raises:
      KdError: as `layer_maps`.
    """
    maps = layer_maps(init, teacher, student).items()
    if narrower(teacher, student):
        params = narrow(params, kept(teacher, student, scores))
    rest = {name: value for name, value in params.items() if not re.fullmatch(r"(en|de)coder_\d+", name)}
    size = student.embedding_rows(vocab_size)
    if teacher.embedding_rows(vocab_size) != size:
        rest |= {name: _resized(rest[name], axis, size) for name, axis in PADDED.items() if name in rest}
    blocks = {f"{stack}_{i}": params[f"{stack}_{j}"] for stack, layers in maps for i, j in enumerate(layers)}
    return compensate(teacher, student, rest | blocks)


# Arrays that have one entry per token, some of them pads: name -> axis.
PADDED = {"embedding": 0, "output": 1, "output_bias": 0}
EMBEDDINGS = (*PADDED, "encoder_positions", "decoder_positions")


def _resized(x: Array, axis: int, size: int) -> Array:
    """Entries cut off or zeros added at the end of an axis, whose size is then `size`."""
    cut = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
    return jnp.pad(cut, [(0, size - cut.shape[axis] if i == axis else 0) for i in range(x.ndim)])


def count_parameters(params: Params) -> tuple[int, int]:
    """(all parameters, those outside the embeddings, learned positions and the output layer)."""
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    return total, total - sum(int(np.prod(params[name].shape)) for name in EMBEDDINGS if name in params)


def random_params(model: Architecture, vocab_size: int, key: Array) -> Params:
    """Parameters drawn from `key`."""
    return jax.jit(model.build(vocab_size).init)(key)
