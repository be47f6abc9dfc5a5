"""A format of Hugging Face's library: how config.json and tensors map to our fields and parameters, both ways."""

import dataclasses
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from kd_jax.config import is_count, is_number
from kd_jax.errors import KdError
from kd_jax.models.transformer import Transformer

Config = Mapping[str, Any]  # the contents of a config.json, with the format's defaults for absent keys
MAX_INTEGER = 2**31 - 1
DERIVED_SIZES = ("num_key_value_heads", "head_dim", "num_decoder_layers", "n_inner")  # null: another size decides


def show(value: Any) -> str:
    """Return a value of a file for an error message, shortened."""
    return reprlib.repr(value)


def read_count(config: Config, key: str, minimum: int = 1) -> int:
    """Return a key's integer; raise KdError if it is another type, or out of range.

    Examples:
      >>> read_count({"d_model": "512"}, "d_model")
      Traceback (most recent call last):
      kd_jax.errors.KdError: config.json: d_model: expected an integer of at least 1, got '512'.
    """
    value = config.get(key)
    if not (is_count(value, minimum) and value <= MAX_INTEGER):
        raise KdError(f"config.json: {key}: expected an integer of at least {minimum}, got {show(value)}.")
    return value


def read_number(config: Config, key: str) -> float:
    """Return a key's number; raise KdError if it is something else, or not above 0 and below 1e12."""
    value = config.get(key)
    if not (is_number(value) and 0 < value < 1e12):
        raise KdError(f"config.json: {key}: expected a number above 0 and below 1e12, got {show(value)}.")
    return float(value)


def read_flag(config: Config, key: str) -> bool:
    """Return a key's truth value; raise KdError if it is something else."""
    value = config.get(key)
    if type(value) is not bool:
        raise KdError(f"config.json: {key}: expected true or false, got {show(value)}.")
    return value


def read_choice(config: Config, key: str, values: Mapping[str, Any]) -> Any:
    """Return what `values` has for a key's text; raise KdError if it has nothing."""
    value = config.get(key)
    if not isinstance(value, str) or value not in values:
        raise KdError(f"config.json: {key}: expected {' or '.join(map(repr, values))}, got {show(value)}.")
    return values[value]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How some keys of a config.json map to some fields of an architecture.

    Attributes:
      read: config -> fields; raises KdError if the value of a key is not implemented.
      write: architecture -> keys; raises KdError if the format cannot express a field's value.
    """

    read: Callable[[Config], dict[str, Any]]
    write: Callable[[Transformer], dict[str, Any]]


def same_value(field: str, *keys: str, read: Callable[[Config, str], Any] = read_count) -> Setting:
    """Return the setting of a field whose value stands under one key, or under several that must agree."""

    def read_field(config: Config) -> dict[str, Any]:
        values = [read(config, key) for key in keys]
        if any(value != values[0] for value in values):
            raise KdError(f"config.json: {', '.join(keys)}: expected equal values, got {values}.")
        return {field: values[0]}

    return Setting(read_field, lambda model: dict.fromkeys(keys, getattr(model, field)))


def choice(field: str, key: str, values: Mapping[str, Any]) -> Setting:
    """Return the setting of a field that has one of several values.

    `values` maps the key's value to the field's; if several map to one, the first is written.
    """

    def write(model: Transformer) -> dict[str, Any]:
        for theirs, ours in values.items():
            if ours == getattr(model, field):
                return {key: theirs}
        expected = " or ".join(map(repr, values.values()))
        raise KdError(f"model.{field}: expected {expected}, got {getattr(model, field)!r}.")

    return Setting(lambda config: {field: read_choice(config, key, values)}, write)


def required_value(key: str, *values: Any) -> Setting:
    """Return the setting of a key that must be absent or have one of `values`; the first is written."""

    def read(config: Config) -> dict[str, Any]:
        if key in config and config[key] not in values:
            raise KdError(f"config.json: {key}: expected {' or '.join(map(repr, values))}, got {show(config[key])}.")
        return {}

    return Setting(read, lambda model: {key: values[0]})


def fixed_fields(**fields: Any) -> Setting:
    """Return the setting of fields that have the same value in every model of the format, without a key."""

    def write(model: Transformer) -> dict[str, Any]:
        for field, value in fields.items():
            if getattr(model, field) != value:
                raise KdError(f"model.{field}: expected {value!r}, got {getattr(model, field)!r}.")
        return {}

    return Setting(lambda config: dict(fields), write)


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """How one of our parameters maps to tensors of a file, concatenated along the last axis.

    Attributes:
      names: names of the tensors; "{i}" stands for the layer.
      transposed: whether each tensor is [out, in], as in PyTorch's Linear.
      offset: added to the tensors when they are read (Gemma stores a norm's scale less 1).
      unused_rows: rows at the beginning that are never used (BART's positions begin at 2).
      leading_axis: whether the tensor has a first axis of size 1 (Marian's bias of the logits).

    Examples:
      >>> mapping = linear("layers.{i}.q.weight", "layers.{i}.k.weight")
      >>> mapping.for_layer(3).names
      ('layers.3.q.weight', 'layers.3.k.weight')
      >>> q, k = mapping.to_tensors(np.arange(6.0).reshape(2, 3), [1, 2])
      >>> q.shape, k.shape, mapping.to_parameter([q, k]).tolist()
      ((1, 2), (2, 2), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    """

    names: tuple[str, ...]
    transposed: bool = False
    offset: float = 0.0
    unused_rows: int = 0
    leading_axis: bool = False

    def for_layer(self, layer: int) -> "TensorMapping":
        """Return the mapping with the number of a layer filled in."""
        return dataclasses.replace(self, names=tuple(name.replace("{i}", str(layer)) for name in self.names))

    def to_parameter(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        """Return the parameter; a view of the tensor if there is only one."""
        parts = [self._to_part(tensor) for tensor in tensors]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def parameter_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of the parameter; raise ValueError if the tensors cannot be concatenated."""
        # A broadcast scalar has a shape, and takes no memory.
        parts = [self._to_part(np.broadcast_to(np.float32(0), shape)).shape for shape in shapes]
        if len({part[:-1] for part in parts}) > 1:
            raise ValueError(parts)
        return (*parts[0][:-1], sum(part[-1] for part in parts))

    def to_tensors(self, parameter: np.ndarray, widths: list[int]) -> list[np.ndarray]:
        """Return the tensors of a parameter that is the concatenation of parts of these widths."""
        parts = np.split(parameter, np.cumsum(widths)[:-1], axis=-1)
        return [np.ascontiguousarray(self._to_tensor(part)) for part in parts]

    def _to_part(self, tensor: np.ndarray) -> np.ndarray:
        """Return a tensor as the part of our parameter."""
        tensor = tensor[0] if self.leading_axis else tensor[self.unused_rows :]
        tensor = tensor.T if self.transposed else tensor
        return tensor + np.float32(self.offset) if self.offset else tensor

    def _to_tensor(self, part: np.ndarray) -> np.ndarray:
        """Return the inverse of `_to_part`; unused rows are zeros."""
        part = part - np.float32(self.offset) if self.offset else part
        part = part.T if self.transposed else part
        if self.leading_axis:
            return part[None]
        return np.concatenate([np.zeros_like(part[: self.unused_rows]), part])


def tensors(*names: str, offset: float = 0.0, unused_rows: int = 0, leading_axis: bool = False) -> TensorMapping:
    """Return the mapping to tensors in our orientation."""
    return TensorMapping(names, offset=offset, unused_rows=unused_rows, leading_axis=leading_axis)


def linear(*names: str) -> TensorMapping:
    """Return the mapping to weights of PyTorch's Linear, which are transposed."""
    return TensorMapping(names, transposed=True)


@dataclasses.dataclass(frozen=True)
class Format:
    """One architecture of Hugging Face's library.

    Attributes:
      model_type: in config.json.
      class_name: of the library's class, in config.json.
      architecture_class: our class of hyper-parameters.
      defaults: transformers' value of every key that the settings read, for a config.json without it.
      settings: all settings that determine the network.
      mappings: path of our parameter -> its tensors.
      aliases: further names of keys; transformers lets them override the key itself.
      depth_keys: keys with numbers of layers.
      always_tied: whether a file without an output matrix is complete, whatever tie_word_embeddings says.
      gated_mappings: mappings that replace others if the feed-forward layers are gated.
      ignored_names: pattern of further tensors that a file may hold, which are not read.
      copies: pattern of copies of the embedding that a file may hold.
      sinusoid_names: tensors of sinusoidal positions that a file may hold; they are checked and not read.
      prefix: of the names; files of the bare model (without a head) lack it.
      mandatory_fields: fields that every model of the format has, with their values. A model of ours without them is
        written with zeros in their place.
    """

    model_type: str
    class_name: str
    architecture_class: type[Transformer]
    defaults: Mapping[str, Any]
    settings: tuple[Setting, ...]
    mappings: Mapping[str, TensorMapping]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    depth_keys: tuple[str, ...] = ("num_hidden_layers",)
    always_tied: bool = False
    gated_mappings: Mapping[str, TensorMapping] = dataclasses.field(default_factory=dict)
    ignored_names: str = r"$^"
    copies: str = r"$^"
    sinusoid_names: tuple[str, ...] = ()
    prefix: str = ""
    mandatory_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def complete_config(self, config: Config) -> dict[str, Any]:
        """Return the contents of a config.json with transformers' values of absent keys, without aliases."""
        aliased = {self.aliases[key]: value for key, value in config.items() if key in self.aliases}
        return {**self.defaults, **config, **aliased}

    def describe_absent_sizes(self, config: Config) -> str:
        """Describe the sizes that a config.json lacks, as a sentence for errors; "" if it has all of them."""
        present = {self.aliases.get(key, key) for key, value in config.items() if value is not None}
        sizes = {key: value for key, value in self.defaults.items() if key in DERIVED_SIZES or is_count(value, 2)}
        absent = [f"{key} (taken {f'as {value}' if value else 'from others'})" for key, value in sizes.items()
                  if key not in present]  # fmt: skip
        return f" config.json lacks {', '.join(absent)}." if absent else ""

    def read_config(self, config: Config, tied: bool) -> Transformer:
        """Return the hyper-parameters of a complete config; `tied` if the embedding is the output matrix."""
        fields: dict[str, Any] = {"tied": tied, "dropout": 0.0}
        for setting in self.settings:
            fields |= setting.read(config)
        return self.architecture_class(**fields)

    def write_config(self, model: Transformer, vocab_rows: int) -> dict[str, Any]:
        """Return the contents of config.json."""
        keys: dict[str, Any] = {"model_type": self.model_type, "architectures": [self.class_name]}
        for setting in self.settings:
            keys |= setting.write(model)
        return keys | {"vocab_size": vocab_rows, "tie_word_embeddings": model.tied, "dtype": "float32"}

    def is_copy(self, name: str) -> bool:
        """Return whether a tensor is a copy of the embedding."""
        return re.fullmatch(self.copies, name) is not None

    def find_mapping(self, path: str, gated: bool) -> TensorMapping:
        """Return the mapping of our parameter at `path`, with the number of its layer filled in."""
        layer = re.search(r"coder_(\d+)\.", path)
        pattern = re.sub(r"coder_\d+\.", "coder_{i}.", path)
        mappings = {**self.mappings, **self.gated_mappings} if gated else self.mappings
        return mappings[pattern].for_layer(int(layer[1])) if layer else mappings[pattern]


def parameter_shapes(model: Transformer) -> dict[str, tuple[int, ...]]:
    """Return path -> shape of every parameter of a model with `vocab_rows` tokens.

    Examples:
      >>> from kd_jax.models.decoder_only import DecoderOnly
      >>> shapes = parameter_shapes(DecoderOnly(layers=2, d_model=8, heads=2, d_ff=12, vocab_rows=10))
      >>> shapes["embedding"], shapes["decoder_1.ffn.in.kernel"], len(shapes)  # 6 in each layer, and the last norm
      ((10, 8), (8, 24), 14)
    """
    # One layer of each stack is traced for all, because tracing every layer takes longer than reading the weights.
    one_layer = {"local": (), "window": 0, "unrotated": (), **dict.fromkeys(model.depth_fields, 1)}
    shallow = dataclasses.replace(model, **one_layer).build(model.vocab_rows)
    leaves: dict[str, Any] = flatten_dict(jax.eval_shape(shallow.init, jax.random.key(0)), sep=".")
    shapes = {}
    for path, leaf in leaves.items():
        stack = re.match(r"(encoder|decoder)_0\.", path)
        layers = model.stacks()[stack[1]] if stack else 1
        shapes |= {path.replace("coder_0.", f"coder_{i}.", 1): leaf.shape for i in range(layers)}
    return shapes
