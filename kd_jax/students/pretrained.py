"""Networks that are not written out: one that a folder holds, and one that is the teacher's but for its sizes."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.errors import KdError
from kd_jax.models.base import Architecture
from kd_jax.models.huggingface.read import read, read_architecture
from kd_jax.models.transformer import COMPUTE_FIELDS, Transformer
from kd_jax.students.init import PADDED, spaced
from kd_jax.types import Params

FREE = (*COMPUTE_FIELDS, "vocab_rows", "vocab_multiple")  # what a folder does not decide


@dataclasses.dataclass(frozen=True)
class FromHuggingFace:
    """Parameters of a local folder in Hugging Face's layout, such as a pretrained teacher or a small base model.

    Attributes:
      folder: with config.json and safetensors; nothing is downloaded. The recipe's model may be None: it is the
        folder's.
      dtype: in which the parameters are kept and computed with; bfloat16 for a model that is not trained any more.

    Examples:
      >>> FromHuggingFace("models/none").check(teacher=None, student=None)
      Traceback (most recent call last):
      kd_jax.errors.KdError: init.folder: 'models/none' has no config.json; wanted a local folder in Hugging Face's \
layout, as --teacher.init.folder models/SmolLM2-135M
    """

    folder: str
    dtype: Literal["float32", "bfloat16"] = "float32"

    origin = "folder"

    def check(self, teacher: Architecture, student: Architecture) -> None:
        """Raises KdError if there is no such folder, or the network is another than its."""
        if self.dtype not in ("float32", "bfloat16"):
            raise KdError(f"init.dtype: {self.dtype!r}; wanted float32 or bfloat16")
        theirs = self.architecture()
        for field in dataclasses.fields(theirs):
            wanted, seen = vars(student).get(field.name), vars(theirs)[field.name]
            if field.name not in FREE and seen != wanted:
                raise KdError(f"model.{field.name}: {wanted!r}, the folder's is {seen!r}; take model=None for its own")

    def architecture(self) -> Transformer:
        """The folder's network; raises KdError as `check`."""
        if not (Path(self.folder) / "config.json").exists():
            raise KdError(
                f"init.folder: {self.folder!r} has no config.json; wanted a local folder in Hugging Face's layout, as "
                "--teacher.init.folder models/SmolLM2-135M"
            )
        return read_architecture(self.folder)

    def params(self, rows_V: np.ndarray) -> Params:
        """The folder's parameters.

        Args:
          rows_V: for each token of the tokeniser its row in the folder's embedding.

        Raises:
          KdError: if the tokeniser has more tokens than the embedding has rows.
        """
        model, params = read(self.folder)
        if rows_V.max() >= model.vocab_rows:
            raise KdError(
                f"init.folder: {self.folder!r} has {model.vocab_rows} rows in its embedding, the tokeniser asks for "
                f"row {rows_V.max()}; wanted the tokeniser of the same folder"
            )
        return jax.tree.map(lambda x: jnp.asarray(x, self.dtype), params)


def cut_rows(params: Params, rows_V: np.ndarray) -> Params:
    """The parameters with these rows of the vocabulary alone, in this order.

    Examples:
      >>> cut_rows({"embedding": jnp.arange(8.0).reshape(4, 2)}, np.array([0, 3]))["embedding"].tolist()
      [[0.0, 1.0], [6.0, 7.0]]
    """
    cut = {name: jnp.take(params[name], rows_V, axis=axis) for name, axis in PADDED.items() if name in params}
    return {**params, **cut}


@dataclasses.dataclass(frozen=True)
class Smaller:
    """The teacher's network with other sizes; a student's model where the teacher's is read from a folder.

    Attributes:
      layers: of a decoder-only model; 0 for the teacher's, as in all other fields.
      encoder_layers, decoder_layers: of an encoder-decoder.
      d_model, d_ff, heads, kv_heads: widths. The width of a head stays the teacher's.

    Examples:
      >>> from kd_jax import DecoderOnly
      >>> student = Smaller(layers=2, d_ff=32).of(DecoderOnly(layers=6, d_model=16, heads=2, d_ff=64))
      >>> student.layers, student.d_model, student.d_ff
      (2, 16, 32)
    """

    layers: int = 0
    encoder_layers: int = 0
    decoder_layers: int = 0
    d_model: int = 0
    d_ff: int = 0
    heads: int = 0
    kv_heads: int = 0

    def of(self, teacher: Transformer) -> Transformer:
        """The student's hyper-parameters; raises KdError for a field that the teacher's family has not."""
        sizes = {field.name: vars(self)[field.name] for field in dataclasses.fields(self) if vars(self)[field.name]}
        for name in sizes:
            if name not in vars(teacher):
                raise KdError(f"model.{name}: {sizes[name]}; the teacher is {teacher.family} and has no {name}")
        if {"d_model", "heads"} & set(sizes):
            sizes["head_dim"] = teacher.head_width
        if "heads" in sizes and "kv_heads" not in sizes and teacher.key_heads == teacher.heads:
            sizes["kv_heads"] = 0
        depth = sizes.get("layers", sizes.get("decoder_layers", teacher.stacks()["decoder"]))
        if teacher.local and depth != teacher.stacks()["decoder"]:
            layers = spaced(teacher.stacks()["decoder"], depth)
            sizes["local"] = tuple(i for i, layer in enumerate(layers) if layer in teacher.local)
        return dataclasses.replace(teacher, **sizes)
