"""Writing one of our models in Hugging Face's layout."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from kd_jax.errors import KdError
from kd_jax.models.huggingface.base import Format, TensorMapping, parameter_shapes
from kd_jax.models.huggingface.files import write_files
from kd_jax.models.huggingface.formats import FORMATS
from kd_jax.models.layers import GATES
from kd_jax.models.positions import sinusoids
from kd_jax.models.transformer import Transformer
from kd_jax.types import Params


def find_format(model: Transformer) -> Format:
    """Return the first format that can express every hyper-parameter."""
    reasons = []
    for model_format in FORMATS.values():
        if isinstance(model, model_format.architecture_class):
            try:
                model_format.write_config(add_mandatory_fields(model, model_format), vocab_rows=1)
                return model_format
            except KdError as error:
                reasons.append(f"{model_format.model_type}: {str(error).removesuffix('.')}")
    raise KdError(f"model: expected the shape of an architecture of transformers, got none; {'; '.join(reasons)}.")


def add_mandatory_fields(model: Transformer, model_format: Format) -> Transformer:
    """Return the model with the parts that every model of the format has, such as biases.

    Sizes that are named and equal their defaults become the defaults.
    """
    absent = {"biases": "none", "head_bias": False}
    changes = {k: value for k, value in model_format.mandatory_fields.items() if getattr(model, k) == absent[k]}
    if model.head_dim * model.heads == model.d_model:
        changes["head_dim"] = 0
    if model.kv_heads == model.heads:
        changes["kv_heads"] = 0
    return dataclasses.replace(model, **changes)


def write_model(folder: Path, model: Transformer, params: Params, config: Mapping[str, Any], vocab_size: int) -> None:
    """Write config.json and safetensors in float32; mandatory parameters that the model lacks are zeros.

    `config` has further keys of config.json. Rows of the embedding beyond `vocab_size` are not written.
    """
    model_format = find_format(model)
    complete = dataclasses.replace(add_mandatory_fields(model, model_format), vocab_multiple=1, vocab_rows=vocab_size)
    keys = model_format.write_config(complete, vocab_size)
    flat_params, gated = flatten_dict(params, sep="."), model.activation in GATES
    tensors: dict[str, np.ndarray] = {}
    for path, shape in parameter_shapes(complete).items():
        parameter = np.asarray(flat_params[path]) if path in flat_params else np.zeros(shape, np.float32)
        parameter = parameter[tuple(slice(size) for size in shape)]  # without rows that pad the vocabulary
        mapping = model_format.find_mapping(path, gated)
        parts = mapping.to_tensors(parameter, _tensor_widths(path, mapping, complete, shape[-1]))
        tensors |= dict(zip(mapping.names, parts, strict=True))
    for name in model_format.sinusoid_names:
        tensors[name] = np.asarray(sinusoids(keys["max_position_embeddings"], model.d_model))
    write_files(folder, {**keys, **config}, tensors)


def _tensor_widths(path: str, mapping: TensorMapping, model: Transformer, width: int) -> list[int]:
    """Return the widths of a parameter's tensors; `width` is that of the parameter."""
    if len(mapping.names) == 1:
        return [width]
    if ".qkv." in path:
        return [model.heads * model.head_width] + 2 * [model.key_heads * model.head_width]
    return [width // len(mapping.names)] * len(mapping.names)
