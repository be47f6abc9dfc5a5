"""A narrower Transformer made of some of a wider one's heads, feed-forward neurons and channels."""

import re
from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.config import is_count
from kd_jax.errors import KdError
from kd_jax.models.axes import parameter_axes
from kd_jax.models.layers import GATES
from kd_jax.models.transformer import Transformer
from kd_jax.types import Array, Params

Width = Literal["importance", "first", "random"]
Scores = Mapping[str, np.ndarray]  # by what is scored, as `scored`; the largest are kept
Indices = Mapping[str, np.ndarray]  # "model" or MODULE.AXIS -> what is kept of that axis, ascending

NORM_SCALE = r"\w+coder_(norm|enter)\.scale|\w+\.norm_\w+\.scale"


def narrower(teacher: Transformer, student: Transformer) -> bool:
    """Whether any width is less than the teacher's."""
    return _widths(student) != _widths(teacher)


def _widths(model: Transformer) -> dict[str, int]:
    return {"d_model": model.d_model, "d_ff": model.d_ff, "heads": model.heads, "kv_heads": model.key_heads}


def check_widths(teacher: Transformer, student: Transformer) -> None:
    """Raises KdError where the student is wider than its teacher, or its heads are not some of the teacher's."""
    theirs = _widths(teacher)
    for field, ours in _widths(student).items():
        if ours > theirs[field]:
            raise KdError(
                f"model.{field}: {ours}, the teacher's is {theirs[field]}; init=FromTeacher wanted at most as many"
            )
    if student.head_width != teacher.head_width:
        raise KdError(
            f"model.head_dim: heads are {student.head_width} wide, the teacher's {teacher.head_width}; "
            f"init=FromTeacher takes whole heads, set head_dim={teacher.head_width}"
        )
    shared = teacher.heads // teacher.key_heads
    if student.heads > shared * student.key_heads:
        raise KdError(
            f"model.heads: {student.heads} for kv_heads = {student.key_heads}, of the teacher's heads {shared} share "
            f"keys; init=FromTeacher wanted at most {shared * student.key_heads}, or more kv_heads"
        )


def check_choice(width: Width, sample: int) -> None:
    """Raises KdError for an unknown way of choosing, or a sample of nothing."""
    if width not in get_args(Width):
        raise KdError(f"init.width: {width!r}; wanted {' or '.join(get_args(Width))}")
    if not is_count(sample, 1):
        raise KdError(f"init.sample: {sample}; wanted a whole number of examples, at least 1")


def scored(model: Transformer) -> dict[str, int]:
    """What can be left out -> how many there are: "channels", and of each layer as its taps are called.

    Examples:
      >>> from kd_jax.models.decoder_only import DecoderOnly
      >>> scored(DecoderOnly(1, d_model=8, heads=2, d_ff=16))
      {'channels': 8, 'decoder_0.heads': 2, 'decoder_0.ffn.neurons': 16}
    """
    sizes, stacks = {"channels": model.d_model}, model.stacks()
    for stack, layers in stacks.items():
        for layer in range(layers):
            sizes[f"{stack}_{layer}.heads"] = model.heads
            if stack == "decoder" and "encoder" in stacks:
                sizes[f"{stack}_{layer}.cross_attention.heads"] = model.heads
            sizes[f"{stack}_{layer}.ffn.neurons"] = model.d_ff
    return sizes


def unmeasured(width: Width, teacher: Transformer, seed: int) -> Scores:
    """Scores by which the first of everything are kept, or, by the seed, random ones: controls for the importance."""
    rng = np.random.default_rng(seed)
    draw = {"first": lambda size: -np.arange(size, dtype=float), "random": rng.random}[width]
    return {name: draw(size) for name, size in scored(teacher).items()}


def largest(scores_X: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the `count` largest scores, ascending; the earlier of equals.

    Examples:
      >>> largest(np.array([3.0, 1.0, 4.0, 1.0]), 3).tolist()
      [0, 1, 2]
    """
    return np.sort(np.argsort(-scores_X, kind="stable")[:count])


def best_heads(scores_H: np.ndarray, groups: int, heads: int, kept_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Which query heads are kept, and which heads of keys and values, each with the best of its queries.

    Args:
      scores_H: of the query heads; those that share keys stand side by side.
      groups: heads of keys and values.
      heads, kept_groups: how many of the query heads and of those are kept; each is left as many queries.

    Returns:
      (query heads, ascending; heads of keys and values, ascending).

    Examples:
      >>> heads, groups = best_heads(np.array([9.0, 0, 0, 5, 6, 4]), groups=2, heads=2, kept_groups=1)
      >>> heads.tolist(), groups.tolist()  # 5 + 6 is more than 9 + 0
      ([3, 4], [1])
    """
    scores_GR = scores_H.reshape(groups, -1)
    best_GR = np.stack([largest(scores_R, heads // kept_groups) for scores_R in scores_GR])
    kept_G = largest(np.take_along_axis(scores_GR, best_GR, axis=1).sum(1), kept_groups)
    return (kept_G[:, None] * scores_GR.shape[1] + best_GR[kept_G]).ravel(), kept_G


def kept(teacher: Transformer, student: Transformer, scores: Scores) -> Indices:
    """What the student keeps of every axis that may be cut.

    Where a table of position biases has a column for each head, all layers of its stack keep the same heads.

    Examples:
      >>> from kd_jax.models.decoder_only import DecoderOnly
      >>> teacher, student = (DecoderOnly(1, d_model=4, heads=n, head_dim=2, d_ff=3, activation="relu") for n in (3, 1))
      >>> scores = {"channels": np.ones(4), "decoder_0.heads": np.array([1.0, 3.0, 2.0]),
      ...           "decoder_0.ffn.neurons": np.ones(3)}
      >>> indices = kept(teacher, student, scores)
      >>> indices["decoder_0.self_attention.qkv"].tolist()  # two columns each of head 1's queries, keys and values
      [2, 3, 8, 9, 14, 15]
    """
    indices = {"model": largest(scores["channels"], student.d_model)}
    for stack, layers in teacher.stacks().items():
        scores_LH = [scores[f"{stack}_{i}.heads"] for i in range(layers)]
        if teacher.positions == "relative":
            scores_LH = [np.sum(scores_LH, axis=0)] * layers
            heads, _ = best_heads(scores_LH[0], teacher.key_heads, student.heads, student.key_heads)
            indices[f"{stack}_buckets.head"] = heads
        for i, scores_H in enumerate(scores_LH):
            layer = f"{stack}_{i}"
            indices |= _of_attention(f"{layer}.self_attention", teacher, student, scores_H)
            if f"{layer}.cross_attention.heads" in scores:
                cross_H = scores[f"{layer}.cross_attention.heads"]
                indices |= _of_attention(f"{layer}.cross_attention", teacher, student, cross_H)
            neurons = largest(scores[f"{layer}.ffn.neurons"], student.d_ff)
            gated = np.concatenate([neurons, teacher.d_ff + neurons])
            indices[f"{layer}.ffn.neuron"] = neurons
            indices[f"{layer}.ffn.inner"] = gated if teacher.activation in GATES else neurons
    return indices


def _of_attention(module: str, teacher: Transformer, student: Transformer, scores_H: np.ndarray) -> Indices:
    """The columns of its products that stay."""
    width = teacher.head_width
    columns = lambda heads: (heads[:, None] * width + np.arange(width)).ravel()  # noqa: E731
    q, k = map(columns, best_heads(scores_H, teacher.key_heads, student.heads, student.key_heads))
    kv = np.concatenate([k, teacher.key_heads * width + k])
    qkv = np.concatenate([q, teacher.heads * width + kv])
    return {f"{module}.q": q, f"{module}.kv": kv, f"{module}.qkv": qkv}


def narrow(params: Params, indices: Indices) -> Params:
    """The parameters with what is kept of them; those that are kept whole are the same arrays.

    Axes of one name within a module are cut alike, "model" is cut alike everywhere, and token, position, bucket and
    width (of a head) are never cut.

    Args:
      params: of the wider network.
      indices: as `kept`.
    """

    def cut(path: tuple, x: Array) -> Array:
        keys = [key.key for key in path]
        for axis, name in enumerate(parameter_axes(".".join(keys))):
            place = name if name == "model" else ".".join([*keys[:2], name])
            if place in indices and len(indices[place]) < x.shape[axis]:
                x = jnp.take(x, indices[place], axis=axis)
        return x

    return jax.tree_util.tree_map_with_path(cut, params)


def compensate(teacher: Transformer, student: Transformer, params: Params) -> Params:
    """The narrower network's parameters, made up for what the number of channels itself changes.

    The mean square of a norm is over D' of D channels. Where those that are left out are zero it is D / D' times as
    large, so a norm's scale grows by (D / D')^0.5; so it does where they are not zero, which measured better than to
    leave it, or to keep the norms' outputs as large as they were. What embeddings are multiplied by falls from D^0.5 to
    D'^0.5: they grow by the quotient. A tied output matrix grows with them, and what it reads shrinks by as much. So it
    does for another `head_scale`.

    Args:
      teacher, student: the two networks.
      params: of the student's shapes.
    """
    wider = (teacher.d_model / student.d_model) ** 0.5
    embedded = wider if teacher.embedding_scale else 1.0
    read = teacher.head_scale / student.head_scale / (embedded if teacher.tied else 1.0)
    last = f"decoder_{student.stacks()['decoder'] - 1}.norm_ffn" if teacher.norm_position == "after" else "decoder_norm"

    def factor(name: str) -> float:
        if name == "embedding":
            return embedded
        of_norm = wider if re.fullmatch(NORM_SCALE, name) else 1.0
        return of_norm * (read if name.startswith(f"{last}.") else 1.0)

    def scaled(path: tuple, x: Array) -> Array:
        by = factor(".".join(key.key for key in path))
        return x if by == 1.0 else x * by

    return jax.tree_util.tree_map_with_path(scaled, params)
