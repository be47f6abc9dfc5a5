"""Reading a local folder in Hugging Face's layout. Nothing is downloaded or unpickled."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from kd_jax.config import is_count
from kd_jax.errors import KdError
from kd_jax.models.huggingface.base import Config, Format, TensorMapping, parameter_shapes, read_flag, show
from kd_jax.models.huggingface.files import Tensors, read_json
from kd_jax.models.huggingface.formats import FORMATS
from kd_jax.models.layers import GATES
from kd_jax.models.positions import sinusoids
from kd_jax.models.transformer import Transformer
from kd_jax.types import Params

CONFIG, HEAD = "config.json", "lm_head.weight"
DTYPES = ("F32", "BF16", "F16", "F64")


class Folder(NamedTuple):
    """An opened folder: its format, the complete contents of config.json, and its tensors."""

    path: Path
    model_format: Format
    config: Config
    tensors: Tensors
    absent_sizes: str  # a sentence with the sizes that config.json lacks


def read_architecture(folder: str | Path) -> Transformer:
    """Return the hyper-parameters of a model, with dropout 0 and the embedding's rows as vocab_rows."""
    opened = _open_folder(Path(folder))
    with _naming_absent_sizes(opened):
        return _read_architecture(opened)


def read_model(folder: str | Path) -> tuple[Transformer, Params]:
    """Return the hyper-parameters of a model and its parameters, float32 on the host."""
    opened = _open_folder(Path(folder))
    with _naming_absent_sizes(opened):
        model = _read_architecture(opened)
        shapes = parameter_shapes(model)
        mappings = {path: _find_mapping(opened, path, model.activation in GATES) for path in shapes}
        _check_tensors(opened, mappings, shapes)
    _check_sinusoids(opened, model.d_model)
    _check_copies(opened, mappings["embedding"].names[0])
    # Copying a tensor also holds its part of the file in memory, so the largest are copied while little else is held.
    largest_first = sorted(mappings, key=lambda path: math.prod(shapes[path]), reverse=True)
    flat = {}
    for path in largest_first:
        flat[path] = mappings[path].to_parameter([opened.tensors.load(name) for name in mappings[path].names])
    return model, unflatten_dict({path: flat[path] for path in mappings}, sep=".")


@contextlib.contextmanager
def _naming_absent_sizes(folder: Folder) -> Iterator[None]:
    """Add the sizes that config.json lacks to a KdError, since their defaults may not fit the tensors."""
    try:
        yield
    except KdError as error:
        raise KdError(f"{error}{folder.absent_sizes}") from error


def _open_folder(folder: Path) -> Folder:
    """Return the folder, after a check that its format is known and its number of layers fits its tensors."""
    if not (folder / CONFIG).exists():
        raise KdError(f"{folder}: expected a folder in Hugging Face's layout, got one without {CONFIG}.")
    written = read_json(folder / CONFIG)
    model_type = written.get("model_type")
    if not isinstance(model_type, str) or model_type not in FORMATS:
        expected = ", ".join(sorted(FORMATS))
        raise KdError(f"{folder / CONFIG}: model_type: expected one of {expected}, got {show(model_type)}.")
    model_format, tensors = FORMATS[model_type], Tensors(folder)
    config, absent_sizes = model_format.complete_config(written), model_format.describe_absent_sizes(written)
    for key in model_format.depth_keys:
        # A layer has tensors of its own. Nothing may loop over layers before this is known.
        if is_count(config[key], len(tensors.shapes)):
            raise KdError(
                f"config.json: {key}: expected fewer layers than the {len(tensors.shapes)} tensors of {folder}, got "
                f"{show(config[key])}.{absent_sizes}"
            )
    return Folder(folder, model_format, config, tensors, absent_sizes)


def _read_architecture(folder: Folder) -> Transformer:
    model = folder.model_format.read_config(folder.config, tied=_read_tied(folder))
    embedding = _find_mapping(folder, "embedding", False).names[0]
    if embedding not in folder.tensors.paths:
        raise KdError(f"{folder.path}: missing: {embedding}. Copy all files of the model.")
    rows = max(folder.tensors.shapes[embedding][:1], default=0)
    # Every width is an axis of some tensor. It is checked here, because shapes are computed before they are compared.
    largest = max(axis for shape in folder.tensors.shapes.values() for axis in (0, *shape))
    for width in (model.d_model, model.d_ff, model.heads * model.head_width, model.key_heads * model.head_width):
        if not rows or width > largest:
            raise KdError(
                f"{folder.path}: expected tensors of the sizes in {CONFIG}, got none with a width of {width:,}; "
                f"{embedding} is {list(folder.tensors.shapes[embedding])}."
            )
    model = dataclasses.replace(model, vocab_rows=rows)
    model.check()
    return model


def _read_tied(folder: Folder) -> bool:
    """Return whether the embedding is the output matrix too.

    As in transformers, a file with both decides for itself: a tied model whose two matrices differ is not tied.
    """
    if HEAD in folder.tensors.paths:
        # A tied model may be saved with its output matrix alone.
        return _find_mapping(folder, "embedding", False).names[0] == HEAD
    if not folder.model_format.always_tied and not read_flag(folder.config, "tie_word_embeddings"):
        raise KdError(
            f"{folder.path}: missing: {HEAD}, since tie_word_embeddings is false (in {CONFIG}, or by default). "
            "Copy the file that has it, or set tie_word_embeddings to true if the model has none."
        )
    return True


def _find_mapping(folder: Folder, path: str, gated: bool) -> TensorMapping:
    """Return the mapping of a parameter to the names of the file.

    A file of the bare model lacks the format's prefix. A tied model may have its embedding under another name alone.
    """
    mapping, prefix = folder.model_format.find_mapping(path, gated), folder.model_format.prefix
    names = folder.tensors.paths
    if prefix and not any(name.startswith(prefix) for name in names):
        mapping = dataclasses.replace(mapping, names=tuple(name.removeprefix(prefix) for name in mapping.names))
    if path == "embedding" and mapping.names[0] not in names:
        tied = folder.model_format.always_tied or folder.config["tie_word_embeddings"] is True
        copies = [name for name in names if folder.model_format.is_copy(name) or (tied and name == HEAD)]
        return dataclasses.replace(mapping, names=tuple(copies[:1]) or mapping.names)
    return mapping


def _check_tensors(
    folder: Folder, mappings: Mapping[str, TensorMapping], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise KdError if tensors are missing, unknown, or of a wrong type or shape."""
    tensors, model_format = folder.tensors, folder.model_format
    used = {name for mapping in mappings.values() for name in mapping.names}
    if missing := sorted(used - set(tensors.paths)):
        raise KdError(
            f"{folder.path}: expected all tensors of the architecture, got none called {_list_names(missing)}."
        )
    known = used | set(model_format.sinusoid_names)
    ignored = re.compile(model_format.ignored_names)
    if unknown := [
        name for name in tensors.paths if not (name in known or ignored.fullmatch(name) or model_format.is_copy(name))
    ]:
        raise KdError(f"{folder.path}: expected only tensors of the architecture, got also {_list_names(unknown)}.")
    if wrong := [f"{name} ({tensors.dtypes[name]})" for name in sorted(used) if tensors.dtypes[name] not in DTYPES]:
        raise KdError(f"{folder.path}: expected tensors of {', '.join(DTYPES)}, got {_list_names(wrong)}.")
    wrong = []
    for path, mapping in mappings.items():
        try:
            shape = mapping.parameter_shape([tensors.shapes[name] for name in mapping.names])
        except (ValueError, IndexError):  # parts that do not fit, or no axes
            shape = ()
        if shape != shapes[path]:
            actual = ", ".join(f"{name} {list(tensors.shapes[name])}" for name in mapping.names)
            wrong.append(f"{actual} for {path} {list(shapes[path])}")
    if wrong:
        raise KdError(f"{folder.path}: expected tensors of the shapes of {CONFIG}, got {_list_names(wrong)}.")


def _check_copies(folder: Folder, embedding: str) -> None:
    """Raise KdError if a copy of the embedding differs from it: transformers would then use both."""
    for name in {name for name in folder.tensors.paths if folder.model_format.is_copy(name)} - {embedding}:
        if not np.array_equal(folder.tensors.load(name), folder.tensors.load(embedding)):
            raise KdError(f"{folder.path}: {name}: expected a copy of {embedding}, got other numbers.")


def _check_sinusoids(folder: Folder, d_model: int) -> None:
    """Raise KdError if a file's table of positions differs from the computed sinusoids."""
    for name in folder.model_format.sinusoid_names:
        if name in folder.tensors.paths:
            table = folder.tensors.load(name)
            if table.shape[1:] != (d_model,) or not np.allclose(table, sinusoids(*table.shape, xp=np), atol=2e-3):
                raise KdError(
                    f"{folder.path}: {name}: expected sinusoids, got other positions, which are not implemented."
                )


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
