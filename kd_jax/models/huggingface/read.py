"""A local folder in Hugging Face's layout to one of our two families. Nothing is downloaded, nothing unpickled."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from kd_jax.errors import KdError
from kd_jax.models.huggingface.base import Format, TensorMapping, parameter_shapes
from kd_jax.models.huggingface.files import Tensors, read_json
from kd_jax.models.huggingface.formats import FORMATS
from kd_jax.models.layers import GATES
from kd_jax.models.positions import sinusoids
from kd_jax.models.transformer import Transformer
from kd_jax.types import Params

CONFIG = "config.json"


def read_architecture(folder: str | Path) -> Transformer:
    """The network of a folder, without its weights; its dropout is 0, its vocab_rows those of the embedding.

    Raises:
      KdError: if there is no config.json, or it names an architecture or a setting that is not implemented.
    """
    return _architecture(Path(folder), Tensors(Path(folder)))


def read(folder: str | Path) -> tuple[Transformer, Params]:
    """The network of a folder and its parameters, float32 on the host.

    Tensors are read one at a time, the largest first: while one is copied its part of the file is in memory too, which
    adds to the most that is ever held only where the others are there already.

    Raises:
      KdError: as `read_architecture`; for tensors that are missing, too many, or of another shape, each named.
    """
    folder = Path(folder)
    tensors = Tensors(folder)
    model = _architecture(folder, tensors)
    kept = _format(folder)
    shapes = parameter_shapes(model)
    stored = {path: _stored(kept, path, model.activation in GATES, tensors) for path in shapes}
    _check(folder, kept, tensors, stored, shapes)
    _check_sinusoids(folder, kept, tensors, model.d_model)
    largest_first = sorted(stored, key=lambda path: math.prod(shapes[path]), reverse=True)
    flat = {path: stored[path].join([tensors.read(name) for name in stored[path].names]) for path in largest_first}
    return model, unflatten_dict({path: flat[path] for path in stored}, sep=".")


def _format(folder: Path) -> Format:
    """Raises KdError if there is no config.json, or it is of an architecture that is not implemented."""
    if not (folder / CONFIG).exists():
        raise KdError(f"{folder}: no {CONFIG}; wanted a folder in Hugging Face's layout")
    model_type = read_json(folder / CONFIG).get("model_type")
    if model_type not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise KdError(f"{folder / CONFIG}: model_type is {model_type!r}; implemented: {known}")
    return FORMATS[model_type]


def _architecture(folder: Path, tensors: Tensors) -> Transformer:
    kept = _format(folder)
    # Whatever config.json says: it is tied where there is no matrix of its own.
    model = kept.architecture(read_json(folder / CONFIG), tied="lm_head.weight" not in tensors.where)
    embedding = _stored(kept, "embedding", False, tensors).names[0]
    if embedding not in tensors.where:
        raise KdError(f"{folder}: tensors missing: {embedding}")
    model = dataclasses.replace(model, vocab_rows=tensors.shapes[embedding][0])
    model.check()
    return model


def _stored(kept: Format, path: str, gated: bool, tensors: Tensors) -> TensorMapping:
    """How a parameter is kept; without the format's prefix where the file is of a bare model."""
    stored = kept.stored(path, gated)
    if kept.prefix and not any(name.startswith(kept.prefix) for name in tensors.where):
        return dataclasses.replace(stored, names=tuple(name.removeprefix(kept.prefix) for name in stored.names))
    return stored


def _check(
    folder: Path,
    kept: Format,
    tensors: Tensors,
    stored: Mapping[str, TensorMapping],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises KdError naming the tensors that are not as the architecture has them."""
    used = {name for one in stored.values() for name in one.names}
    missing = sorted(used - set(tensors.where))
    extra = [
        name
        for name in tensors.where
        if not (name in used or name in kept.sinusoids or re.fullmatch(kept.ignored, name))
    ]
    for what, names in (("missing", missing), ("that the architecture has not", extra)):
        if names:
            raise KdError(f"{folder}: tensors {what}: {_few(names)}")
    wrong = []
    for path, one in stored.items():
        try:
            shape = one.joined([tensors.shapes[name] for name in one.names])
        except ValueError:
            shape = ()
        if shape != shapes[path]:
            seen = ", ".join(f"{name} {list(tensors.shapes[name])}" for name in one.names)
            wrong.append(f"{seen} for {path} {list(shapes[path])}")
    if wrong:
        raise KdError(f"{folder}: tensors of another shape than {CONFIG} asks for: {_few(wrong)}")


def _check_sinusoids(folder: Path, kept: Format, tensors: Tensors, d_model: int) -> None:
    """Raises KdError if a file's table of positions is not what is computed here."""
    for name in kept.sinusoids:
        if name in tensors.where:
            table = tensors.read(name)
            if table.shape[1] != d_model or not np.allclose(table, sinusoids(*table.shape, xp=np), atol=2e-3):
                raise KdError(f"{folder}: {name} does not hold sinusoids; learned ones are not implemented here")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
