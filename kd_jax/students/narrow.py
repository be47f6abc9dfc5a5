"""A narrower Transformer from some heads, feed-forward neurons and channels of a wider one."""

import re
from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.config import check_count
from kd_jax.errors import KdError
from kd_jax.models.axes import parameter_axes
from kd_jax.models.layers import GATES
from kd_jax.models.transformer import Transformer
from kd_jax.types import Array, Params

WidthRule = Literal["importance", "first", "random"]
# Component, as in `component_sizes` -> a score of each of its parts. A student keeps the parts with the largest scores.
Scores = Mapping[str, np.ndarray]
# "model" or MODULE.AXIS -> the indices that a student keeps of that axis, ascending.
Indices = Mapping[str, np.ndarray]

NORM_SCALE = r"\w+coder_(norm|enter)\.scale|\w+\.norm_\w+\.scale"


def is_narrower(teacher: Transformer, student: Transformer) -> bool:
    """Return whether a width of the student differs from the teacher's."""
    return _widths(student) != _widths(teacher)


def _widths(model: Transformer) -> dict[str, int]:
    return {"d_model": model.d_model, "d_ff": model.d_ff, "heads": model.heads, "kv_heads": model.key_heads}


def check_widths(teacher: Transformer, student: Transformer, owner: str, init: str) -> None:
    """Check that the student's widths and heads can be selected from the teacher's.

    Args:
      teacher: the wider network.
      student: the narrower one.
      owner: "the teacher's", or the same of another student, for the message.
      init: class of the student's init, for the message.
    """
    teacher_widths = _widths(teacher)
    for field, width in _widths(student).items():
        if width > teacher_widths[field]:
            raise KdError(
                f"model.{field}: expected at most {owner} {teacher_widths[field]} for init={init}, got {width}."
            )
    if student.head_width != teacher.head_width:
        raise KdError(
            f"model.head_dim: expected heads of width {teacher.head_width}, as {owner}, for init={init}, got "
            f"{student.head_width}. Set head_dim={teacher.head_width}."
        )
    if teacher.qk_norm_joint and (student.heads, student.key_heads) != (teacher.heads, teacher.key_heads):
        raise KdError(
            f"model.heads: expected {teacher.heads} and kv_heads = {teacher.key_heads}, since {owner} qk_norm_joint "
            f"normalises all heads together, for init={init}, got {student.heads} and {student.key_heads}."
        )
    heads_per_group = teacher.heads // teacher.key_heads
    if student.heads > heads_per_group * student.key_heads:
        raise KdError(
            f"model.heads: expected at most {heads_per_group * student.key_heads} for kv_heads = {student.key_heads}, "
            f"since {heads_per_group} of {owner} heads share keys, got {student.heads}. Set more kv_heads."
        )


def check_width_rule(width: WidthRule, sample: int) -> None:
    """Check a rule of widths and its number of examples."""
    if width not in get_args(WidthRule):
        raise KdError(f"init.width: expected one of {', '.join(get_args(WidthRule))}, got {width!r}.")
    check_count("init.sample", sample, 1)


def component_sizes(model: Transformer) -> dict[str, int]:
    """Return component -> number of its parts: "channels", and each layer's heads and neurons.

    Components of layers have the names of their taps.
    """
    sizes, stacks = {"channels": model.d_model}, model.stacks()
    for stack, layers in stacks.items():
        for layer in range(layers):
            sizes[f"{stack}_{layer}.heads"] = model.heads
            if stack == "decoder" and "encoder" in stacks:
                sizes[f"{stack}_{layer}.cross_attention.heads"] = model.heads
            sizes[f"{stack}_{layer}.ffn.neurons"] = model.d_ff
    return sizes


def control_scores(width: WidthRule, teacher: Transformer, seed: int) -> Scores:
    """Return scores that select the "first" parts of each component or "random" ones, as controls."""
    rng = np.random.default_rng(seed)
    if width == "first":
        return {name: -np.arange(size, dtype=float) for name, size in component_sizes(teacher).items()}
    return {name: rng.random(size) for name, size in component_sizes(teacher).items()}


def top_indices(scores_X: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest scores, ascending; of ties the first.

    Examples:
      >>> top_indices(np.array([3.0, 1.0, 4.0, 1.0]), 3).tolist()
      [0, 1, 2]
    """
    return np.sort(np.argsort(-scores_X, kind="stable")[:count])


def best_heads(
    scores_H: np.ndarray, groups: int, student_heads: int, student_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best query heads, and the best heads of keys and values.

    Each group of query heads that share keys and values counts with the sum of its best query heads.
    The heads of a group are adjacent. The same number of query heads is selected from each group. Both results ascend.
    """
    scores_GR = scores_H.reshape(groups, -1)
    best_GR = np.stack([top_indices(scores_R, student_heads // student_groups) for scores_R in scores_GR])
    best_G = top_indices(np.take_along_axis(scores_GR, best_GR, axis=1).sum(1), student_groups)
    return (best_G[:, None] * scores_GR.shape[1] + best_GR[best_G]).ravel(), best_G


def select_indices(teacher: Transformer, student: Transformer, scores: Scores) -> Indices:
    """Return the indices that the student keeps of every axis that may be narrowed.

    With relative positions all layers of a stack keep the same heads, since they share a table of biases for each head.
    """
    indices = {"model": top_indices(scores["channels"], student.d_model)}
    for stack, layers in teacher.stacks().items():
        scores_LH = [scores[f"{stack}_{i}.heads"] for i in range(layers)]
        if teacher.positions == "relative":
            scores_LH = [np.sum(scores_LH, axis=0)] * layers
            heads, _ = best_heads(scores_LH[0], teacher.key_heads, student.heads, student.key_heads)
            indices[f"{stack}_buckets.head"] = heads
        for i, scores_H in enumerate(scores_LH):
            layer = f"{stack}_{i}"
            indices |= _attention_indices(f"{layer}.self_attention", teacher, student, scores_H)
            if f"{layer}.cross_attention.heads" in scores:
                cross_H = scores[f"{layer}.cross_attention.heads"]
                indices |= _attention_indices(f"{layer}.cross_attention", teacher, student, cross_H)
            neurons = top_indices(scores[f"{layer}.ffn.neurons"], student.d_ff)
            gated = np.concatenate([neurons, teacher.d_ff + neurons])
            indices[f"{layer}.ffn.neuron"] = neurons
            indices[f"{layer}.ffn.inner"] = gated if teacher.activation in GATES else neurons
    return indices


def _attention_indices(module: str, teacher: Transformer, student: Transformer, scores_H: np.ndarray) -> Indices:
    """Return the columns that the student keeps of the projections of an attention module."""
    width = teacher.head_width
    columns = lambda heads: (heads[:, None] * width + np.arange(width)).ravel()  # noqa: E731
    q, k = map(columns, best_heads(scores_H, teacher.key_heads, student.heads, student.key_heads))
    kv = np.concatenate([k, teacher.key_heads * width + k])
    qkv = np.concatenate([q, teacher.heads * width + kv])
    return {f"{module}.q": q, f"{module}.kv": kv, f"{module}.qkv": qkv}


def narrow(params: Params, indices: Indices) -> Params:
    """Select indices of the named axes of a network's parameters; other arrays are returned as they are, not copied.

    `models.axes` names the axes. All axes "model" (the residual stream) take the same indices; axes of another name
    take the same indices within a layer's module. Axes of tokens, positions, relative-position buckets and the width of
    an attention head are never narrowed.
    """

    def narrow_array(path: tuple, x: Array) -> Array:
        keys = [key.key for key in path]
        for axis, name in enumerate(parameter_axes(".".join(keys))):
            axis_name = name if name == "model" else ".".join([*keys[:2], name])
            if axis_name in indices and len(indices[axis_name]) < x.shape[axis]:
                x = jnp.take(x, indices[axis_name], axis=axis)
        return x

    return jax.tree_util.tree_map_with_path(narrow_array, params)


def compensate(teacher: Transformer, student: Transformer, params: Params) -> Params:
    """Rescale a narrower network's parameters for its smaller number of channels.

    A norm divides by the root mean square over D' instead of D channels. If the removed channels were zero, it is (D /
    D')^0.5 times as large, so the scales of norms are multiplied by this factor. Embeddings are multiplied by D^0.5 in
    the network, so they are multiplied by the same factor. A tied output matrix grows with them, so its input is
    divided by the factor. Another `head_scale` is compensated there too.
    """
    norm_factor = (teacher.d_model / student.d_model) ** 0.5
    embedding_factor = norm_factor if teacher.embedding_scale else 1.0
    head_factor = teacher.head_scale / student.head_scale / (embedding_factor if teacher.tied else 1.0)
    last = f"decoder_{student.stacks()['decoder'] - 1}.norm_ffn" if teacher.norm_position == "after" else "decoder_norm"

    def factor(name: str) -> float:
        if name == "embedding":
            return embedding_factor
        scale_factor = norm_factor if re.fullmatch(NORM_SCALE, name) else 1.0
        return scale_factor * (head_factor if name.startswith(f"{last}.") else 1.0)

    def rescale(path: tuple, x: Array) -> Array:
        by = factor(".".join(key.key for key in path))
        return x if by == 1.0 else x * by

    return jax.tree_util.tree_map_with_path(rescale, params)
