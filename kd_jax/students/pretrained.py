"""Pretrained models in Hugging Face's layout, and students with the teacher's architecture in other sizes."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.config import MAX_WIDTH, check_count
from kd_jax.errors import KdError
from kd_jax.models.base import Architecture
from kd_jax.models.huggingface.files import Tensors
from kd_jax.models.huggingface.read import read_architecture, read_model
from kd_jax.models.transformer import COMPUTE_FIELDS, Transformer
from kd_jax.students.init import VOCAB_AXES, evenly_spaced_layers, layer_fields
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers import generation_config
from kd_jax.tokenizers.generation_config import GenerationSettings
from kd_jax.tokenizers.hf_folder import read_model_config
from kd_jax.types import Params

Dtype = Literal["float32", "bfloat16"]
Generation = Literal["same", "own"]
FREE_FIELDS = (*COMPUTE_FIELDS, "vocab_rows", "vocab_multiple")  # fields of a model that do not depend on the folder


@dataclasses.dataclass(frozen=True)
class FromHuggingFace:
    """Initial parameters from a local folder in Hugging Face's layout, for example of a pretrained teacher.

    Attributes:
      folder: local folder with config.json and safetensors; nothing is downloaded. If the recipe's model is None, it is
        that of the folder.
      dtype: of the parameters and the computation; "bfloat16" for a model that is not trained further.
      generation: "same" if the task's decoding must obey the folder's generation_config.json, so that texts are those
        of transformers; "own" if the task's decoding alone decides.

    Examples:
      >>> FromHuggingFace("models/none").check(teacher=None, student=None)
      Traceback (most recent call last):
      kd_jax.errors.KdError: init.folder: expected a local folder in Hugging Face's layout, \
got 'models/none' without config.json. For example --teacher.init.folder models/SmolLM2-135M.
    """

    folder: str
    dtype: Dtype = "float32"
    generation: Generation = "same"

    def check(self, teacher: Architecture | None, student: Architecture | None) -> None:
        """Check that the folder has the model's architecture."""
        if self.dtype not in get_args(Dtype):
            raise KdError(f"init.dtype: expected {' or '.join(get_args(Dtype))}, got {self.dtype!r}.")
        if self.generation not in get_args(Generation):
            raise KdError(f"init.generation: expected {' or '.join(get_args(Generation))}, got {self.generation!r}.")
        architecture = self.architecture()
        for field in dataclasses.fields(architecture):
            ours, theirs = getattr(student, field.name, None), getattr(architecture, field.name)
            if field.name not in FREE_FIELDS and ours != theirs:
                raise KdError(
                    f"model.{field.name}: expected the folder's {theirs!r}, got {ours!r}. Set model=None to take it "
                    "from the folder."
                )

    def architecture(self) -> Transformer:
        """Return the folder's architecture."""
        if not (Path(self.folder) / "config.json").exists():
            raise KdError(
                f"init.folder: expected a local folder in Hugging Face's layout, got {self.folder!r} without "
                "config.json. For example --teacher.init.folder models/SmolLM2-135M."
            )
        return read_architecture(self.folder)

    def weight_files(self) -> list[Path]:
        """Return the files that hold the parameters."""
        return sorted(set(Tensors(Path(self.folder)).paths.values()))

    def generation_settings(self, has_encoder: bool, forced_tokens: int) -> GenerationSettings:
        """Return what the folder says about decoding; raise KdError for a setting that is not implemented.

        Args:
          has_encoder: whether the model is an encoder-decoder.
          forced_tokens: number of tokens that every text begins with.
        """
        return generation_config.read_settings(read_model_config(Path(self.folder)), has_encoder, forced_tokens)

    def check_decoding(self, decoding: Decoding, has_encoder: bool) -> None:
        """Check that decoding obeys the folder's generation_config.json, if `generation` is "same"."""
        if self.generation == "own":
            return
        config = read_model_config(Path(self.folder))
        forced_tokens = int("forced_bos_token_id" in config)
        settings = generation_config.read_settings(config, has_encoder, forced_tokens)
        for field, key in generation_config.KEYS.items():
            owner = decoding.sampling if field == "repetition_penalty" else decoding
            path = "sampling.repetition_penalty" if field == "repetition_penalty" else field
            expected = getattr(settings, field)
            # A setting of ours that the folder lacks is a choice.
            if key in config and expected != getattr(owner, field) and expected != getattr(GenerationSettings(), field):
                raise KdError(
                    f"task.decoding.{path}: expected {expected}, by {key} in {generation_config.NAME} of "
                    f"{self.folder!r}, got {getattr(owner, field)}. Set it, or init.generation to own for other texts."
                )

    def load_params(self, rows_V: np.ndarray) -> Params:
        """Read the folder's parameters; `rows_V` has the row in the folder's embedding for each token."""
        model, params = read_model(self.folder)
        if rows_V.max() >= model.vocab_rows:
            raise KdError(
                f"init.folder: expected an embedding with row {rows_V.max()} of the tokenizer, got {model.vocab_rows} "
                f"rows in {self.folder!r}. Use the tokenizer of the same folder."
            )
        return jax.tree.map(lambda x: jnp.asarray(x, self.dtype), params)


def select_vocab_rows(params: Params, rows_V: np.ndarray) -> Params:
    """Return the parameters with the rows `rows_V` of the vocabulary, in this order."""
    selected = {name: jnp.take(params[name], rows_V, axis=axis) for name, axis in VOCAB_AXES.items() if name in params}
    return {**params, **selected}


@dataclasses.dataclass(frozen=True)
class Smaller:
    """A student's architecture: the teacher's with other sizes; useful if the teacher's is read from a folder.

    The width of a head remains the teacher's. Every field is 0 for the teacher's value. With init=FromStudent the
    other student's architecture takes the place of the teacher's.

    Attributes:
      layers: number of layers of a decoder-only model.
      encoder_layers: number of encoder layers.
      decoder_layers: number of decoder layers.
      d_model: number of channels.
      d_ff: number of feed-forward neurons.
      heads: number of query heads.
      kv_heads: number of heads of keys and values.

    Examples:
      >>> from kd_jax import DecoderOnly
      >>> student = Smaller(layers=2, d_ff=32).resolve(DecoderOnly(layers=6, d_model=16, heads=2, d_ff=64))
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

    def resolve(self, teacher: Transformer) -> Transformer:
        """Return the student's architecture."""
        sizes = {field: size for field, size in dataclasses.asdict(self).items() if size}
        for field, size in sizes.items():
            check_count(f"model.{field}", size, 1, MAX_WIDTH)
            if not hasattr(teacher, field):
                raise KdError(
                    f"model.{field}: expected 0, since a {teacher.family} teacher has no {field}, got {size}."
                )
        if {"d_model", "heads"} & set(sizes):
            sizes["head_dim"] = teacher.head_width
        if "heads" in sizes and "kv_heads" not in sizes and teacher.key_heads == teacher.heads:
            sizes["kv_heads"] = 0
        depth = sizes.get("layers", sizes.get("decoder_layers", teacher.stacks()["decoder"]))
        by_layer = {}
        if depth != teacher.stacks()["decoder"]:
            by_layer = layer_fields(teacher, evenly_spaced_layers(teacher.stacks()["decoder"], depth))
        return dataclasses.replace(teacher, **sizes, **by_layer)
