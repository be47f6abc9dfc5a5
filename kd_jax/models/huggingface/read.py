"""Reading a local folder in Hugging Face's layout. Nothing is downloaded or unpickled."""

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
    """Return the hyper-parameters of a model, with dropout 0 and the embedding's rows as vocab_rows."""
    return _read_architecture(Path(folder), Tensors(Path(folder)))


def read_model(folder: str | Path) -> tuple[Transformer, Params]:
    """Return the hyper-parameters of a model and its parameters, float32 on the host."""
    folder = Path(folder)
    tensors = Tensors(folder)
    model = _read_architecture(folder, tensors)
    model_format = _read_format(folder)
    shapes = parameter_shapes(model)
    mappings = {path: _find_mapping(model_format, path, model.activation in GATES, tensors) for path in shapes}
    _check_tensors(folder, model_format, tensors, mappings, shapes)
    _check_sinusoids(folder, model_format, tensors, model.d_model)
    # Copying a tensor also holds its part of the file in memory, so the largest are copied while little else is held.
    largest_first = sorted(mappings, key=lambda path: math.prod(shapes[path]), reverse=True)
    flat = {}
    for path in largest_first:
        flat[path] = mappings[path].to_parameter([tensors.load(name) for name in mappings[path].names])
    return model, unflatten_dict({path: flat[path] for path in mappings}, sep=".")


def _read_format(folder: Path) -> Format:
    if not (folder / CONFIG).exists():
        raise KdError(f"{folder}: expected a folder in Hugging Face's layout, got one without {CONFIG}.")
    model_type = read_json(folder / CONFIG).get("model_type")
    if model_type not in FORMATS:
        expected = ", ".join(sorted(FORMATS))
        raise KdError(f"{folder / CONFIG}: model_type: expected one of {expected}, got {model_type!r}.")
    return FORMATS[model_type]


def _read_architecture(folder: Path, tensors: Tensors) -> Transformer:
    model_format = _read_format(folder)
    # The file decides whether the model is tied, not config.json.
    model = model_format.read_config(read_json(folder / CONFIG), tied="lm_head.weight" not in tensors.paths)
    embedding = _find_mapping(model_format, "embedding", False, tensors).names[0]
    if embedding not in tensors.paths:
        raise KdError(f"{folder}: expected all tensors of the architecture, got none called {embedding}.")
    model = dataclasses.replace(model, vocab_rows=tensors.shapes[embedding][0])
    model.check()
    return model


def _find_mapping(model_format: Format, path: str, gated: bool, tensors: Tensors) -> TensorMapping:
    """Return the mapping of a parameter, without the format's prefix if the file holds the bare model."""
    mapping, prefix = model_format.find_mapping(path, gated), model_format.prefix
    if prefix and not any(name.startswith(prefix) for name in tensors.paths):
        return dataclasses.replace(mapping, names=tuple(name.removeprefix(prefix) for name in mapping.names))
    return mapping


def _check_tensors(
    folder: Path,
    model_format: Format,
    tensors: Tensors,
    mappings: Mapping[str, TensorMapping],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise KdError if tensors are missing, unknown, or of a wrong shape."""
    used = {name for mapping in mappings.values() for name in mapping.names}
    if missing := sorted(used - set(tensors.paths)):
        raise KdError(f"{folder}: expected all tensors of the architecture, got none called {_list_names(missing)}.")
    known = used | set(model_format.sinusoid_names)
    ignored = re.compile(model_format.ignored_names)
    if unknown := [name for name in tensors.paths if name not in known and not ignored.fullmatch(name)]:
        raise KdError(f"{folder}: expected only tensors of the architecture, got also {_list_names(unknown)}.")
    wrong = []
    for path, mapping in mappings.items():
        try:
            shape = mapping.parameter_shape([tensors.shapes[name] for name in mapping.names])
        except ValueError:
            shape = ()
        if shape != shapes[path]:
            actual = ", ".join(f"{name} {list(tensors.shapes[name])}" for name in mapping.names)
            wrong.append(f"{actual} for {path} {list(shapes[path])}")
    if wrong:
        raise KdError(f"{folder}: expected tensors of the shapes of {CONFIG}, got {_list_names(wrong)}.")


def _check_sinusoids(folder: Path, model_format: Format, tensors: Tensors, d_model: int) -> None:
    """Raise KdError if a file's table of positions differs from the computed sinusoids."""
    for name in model_format.sinusoid_names:
        if name in tensors.paths:
            table = tensors.load(name)
            if table.shape[1] != d_model or not np.allclose(table, sinusoids(*table.shape, xp=np), atol=2e-3):
                raise KdError(f"{folder}: {name}: expected sinusoids, got other positions, which are not implemented.")


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
