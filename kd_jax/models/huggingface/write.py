"""One of our models in Hugging Face's layout."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from kd_jax.errors import KdError
from kd_jax.models.huggingface import files
from kd_jax.models.huggingface.base import Format, TensorMapping, parameter_shapes
from kd_jax.models.huggingface.formats import FORMATS
from kd_jax.models.layers import GATES
from kd_jax.models.positions import sinusoids
from kd_jax.models.transformer import Transformer
from kd_jax.types import Params


def find_format(model: Transformer) -> Format:
    """The first format that has a word for every hyper-parameter.

    Raises:
      KdError: if there is none, with what each format of the family lacks.

    Examples:
      >>> from kd_jax.models.decoder_only import DecoderOnly
      >>> find_format(DecoderOnly()).class_name, find_format(DecoderOnly(qk_norm=True)).class_name
      ('LlamaForCausalLM', 'Qwen3ForCausalLM')
    """
    lacking = []
    for kept in FORMATS.values():
        if isinstance(model, kept.family):
            try:
                kept.config(widened(model, kept), vocab_rows=1)
                return kept
            except KdError as error:
                lacking.append(f"{kept.model_type}: {error}")
    raise KdError("no architecture of transformers has this shape; " + "; ".join(lacking))


def widened(model: Transformer, kept: Format) -> Transformer:
    """The model with what the format cannot leave out, such as biases."""
    absent = {"biases": "none", "head_bias": False}
    more = {field: value for field, value in kept.widened.items() if vars(model)[field] == absent[field]}
    return dataclasses.replace(model, **more)


def write(folder: Path, model: Transformer, params: Params, config: Mapping[str, Any], vocab_size: int) -> None:
    """config.json and model.safetensors, float32; what the format cannot leave out is zeros.

    Args:
      folder: which exists.
      model: hyper-parameters.
      params: of the model.
      config: further keys of config.json, such as the numbers of the special tokens.
      vocab_size: tokens that the tokeniser knows; rows that only pad them are left out.

    Raises:
      KdError: as `find_format`.
    """
    kept = find_format(model)
    wide = dataclasses.replace(widened(model, kept), vocab_multiple=1, vocab_rows=vocab_size)
    keys = kept.config(wide, vocab_size)
    given, gated = flatten_dict(params, sep="."), model.activation in GATES
    tensors: dict[str, np.ndarray] = {}
    for path, shape in parameter_shapes(wide).items():
        parameter = np.asarray(given[path]) if path in given else np.zeros(shape, np.float32)
        parameter = parameter[tuple(slice(size) for size in shape)]  # without the vocabulary's padding
        stored = kept.stored(path, gated)
        parts = stored.split(parameter, _widths(path, stored, wide, shape[-1]))
        tensors |= dict(zip(stored.names, parts, strict=True))
    for name in kept.sinusoids:
        tensors[name] = np.asarray(sinusoids(keys["max_position_embeddings"], model.d_model))
    files.write(folder, {**keys, **config}, tensors)


def _widths(path: str, stored: TensorMapping, model: Transformer, width: int) -> list[int]:
    """Widths of the tensors that a parameter is joined of."""
    if len(stored.names) == 1:
        return [width]
    if ".qkv." in path:
        return [model.heads * model.head_width] + 2 * [model.key_heads * model.head_width]
    return [width // len(stored.names)] * len(stored.names)
