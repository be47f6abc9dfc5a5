"""What a format of Hugging Face's library is: a table of settings and one of names, each read both ways."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from kd_jax.errors import KdError
from kd_jax.models.transformer import Transformer

Config = Mapping[str, Any]  # a config.json


@dataclasses.dataclass(frozen=True)
class Setting:
    """Some keys of a config.json against some fields of an architecture.

    Attributes:
      read: config -> fields; raises KdError naming a key whose value is not implemented.
      write: architecture -> keys; raises KdError naming a field that the format has no word for.
    """

    read: Callable[[Config], dict[str, Any]]
    write: Callable[[Transformer], dict[str, Any]]


def same(field: str, *keys: str, default: Any = None) -> Setting:
    """One value under one name or several, which must agree; `default` where none is given."""

    def read(config: Config) -> dict[str, Any]:
        values = [config[key] for key in keys if config.get(key) is not None]
        if not values and default is None:
            raise KdError(f"config.json: {keys[0]} is missing")
        if any(value != values[0] for value in values):
            raise KdError(f"config.json: {' and '.join(keys)} differ, {values}; only equal ones are implemented")
        return {field: values[0] if values else default}

    return Setting(read, lambda model: dict.fromkeys(keys, vars(model)[field]))


def choice(field: str, key: str, words: Mapping[Any, Any], default: Any = None) -> Setting:
    """A word of theirs for a word of ours; the first of several of theirs is written."""

    def read(config: Config) -> dict[str, Any]:
        word = config.get(key, default)
        if word not in words:
            raise KdError(f"config.json: {key} is {word!r}; implemented: {', '.join(map(repr, words))}")
        return {field: words[word]}

    def write(model: Transformer) -> dict[str, Any]:
        for theirs, ours in words.items():
            if ours == vars(model)[field]:
                return {key: theirs}
        raise KdError(f"model.{field}: {vars(model)[field]!r}; the format knows {', '.join(map(repr, words.values()))}")

    return Setting(read, write)


def only(key: str, *values: Any) -> Setting:
    """A key that must be absent or have one of `values`; the first is written."""

    def read(config: Config) -> dict[str, Any]:
        if key in config and config[key] not in values:
            raise KdError(f"config.json: {key} is {config[key]!r}; implemented: {' or '.join(map(repr, values))}")
        return {}

    return Setting(read, lambda model: {key: values[0]})


def fixed(**fields: Any) -> Setting:
    """What the format always is, without a key for it."""

    def write(model: Transformer) -> dict[str, Any]:
        for field, value in fields.items():
            if vars(model)[field] != value:
                raise KdError(f"model.{field}: {vars(model)[field]!r}; the format has {value!r}")
        return {}

    return Setting(lambda config: dict(fields), write)


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """How a parameter of ours is kept: tensors joined along the last axis.

    Attributes:
      names: of the tensors; "{i}" is the layer.
      transposed: whether each tensor is [out, in], as PyTorch's Linear has it.
      added: what is added to the tensors when they are read (Gemma keeps a norm's scale less 1).
      skipped: rows at the beginning that are never used (BART's positions begin at 2).
      row: whether the tensor has a first axis of one (Marian's bias of the logits).

    Examples:
      >>> kept = dense("layers.{i}.q.weight", "layers.{i}.k.weight")
      >>> kept.at(3).names
      ('layers.3.q.weight', 'layers.3.k.weight')
      >>> q, k = kept.split(np.arange(6.0).reshape(2, 3), [1, 2])
      >>> q.shape, k.shape, kept.join([q, k]).tolist()
      ((1, 2), (2, 2), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    """

    names: tuple[str, ...]
    transposed: bool = False
    added: float = 0.0
    skipped: int = 0
    row: bool = False

    def at(self, layer: int) -> "TensorMapping":
        """The names of one layer."""
        return dataclasses.replace(self, names=tuple(name.replace("{i}", str(layer)) for name in self.names))

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """One tensor as we have it."""
        tensor = tensor[0] if self.row else tensor[self.skipped :]
        tensor = tensor.T if self.transposed else tensor
        return tensor + np.float32(self.added) if self.added else tensor

    def theirs(self, part: np.ndarray) -> np.ndarray:
        """The inverse of `ours`; rows that are never used are zeros."""
        part = part - np.float32(self.added) if self.added else part
        part = part.T if self.transposed else part
        return part[None] if self.row else np.concatenate([np.zeros_like(part[: self.skipped]), part])

    def join(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        """The parameter; a view where it is one tensor: whoever copies it next turns it too."""
        parts = [self.ours(tensor) for tensor in tensors]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def joined(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The parameter's shape from the tensors'; raises ValueError where they do not fit together."""
        parts = [self.ours(np.broadcast_to(np.float32(0), shape)).shape for shape in shapes]  # no values are made
        if len({part[:-1] for part in parts}) > 1:
            raise ValueError(parts)
        return (*parts[0][:-1], sum(part[-1] for part in parts))

    def split(self, parameter: np.ndarray, widths: list[int]) -> list[np.ndarray]:
        """The tensors, which are `widths` wide as we have them."""
        parts = np.split(parameter, np.cumsum(widths)[:-1], axis=-1)
        return [np.ascontiguousarray(self.theirs(part)) for part in parts]


def plain(*names: str, **options: Any) -> TensorMapping:
    """Tensors as they are."""
    return TensorMapping(names, **options)


def dense(*names: str) -> TensorMapping:
    """Kernels of PyTorch's Linear."""
    return TensorMapping(names, transposed=True)


@dataclasses.dataclass(frozen=True)
class Format:
    """One architecture of Hugging Face's library.

    Attributes:
      model_type, class_name: in config.json.
      family: the dataclass of ours.
      settings: all that decides the network.
      names: path of a parameter of ours -> how it is kept.
      gated: further names, where the feed-forward layers are gated.
      ignored: pattern of tensors that a file may hold besides, such as copies of the embedding.
      sinusoids: names under which a file may hold its positions, which are computed here.
      prefix: of the names, which files of the bare model lack.
      widened: fields that the format cannot leave out, with the values that add nothing: what a model of ours lacks is
        written as zeros.
    """

    model_type: str
    class_name: str
    family: type[Transformer]
    settings: tuple[Setting, ...]
    names: Mapping[str, TensorMapping]
    gated: Mapping[str, TensorMapping] = dataclasses.field(default_factory=dict)
    ignored: str = r"$^"
    sinusoids: tuple[str, ...] = ()
    prefix: str = ""
    widened: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def architecture(self, config: Config, tied: bool) -> Transformer:
        """Hyper-parameters; raises KdError naming a setting that is not implemented."""
        fields: dict[str, Any] = {"tied": tied, "dropout": 0.0}
        for setting in self.settings:
            fields |= setting.read(config)
        return self.family(**fields)

    def config(self, model: Transformer, vocab_rows: int) -> dict[str, Any]:
        """The config.json; raises KdError naming a field that the format cannot say."""
        keys: dict[str, Any] = {"model_type": self.model_type, "architectures": [self.class_name]}
        for setting in self.settings:
            keys |= setting.write(model)
        return keys | {"vocab_size": vocab_rows, "tie_word_embeddings": model.tied, "dtype": "float32"}

    def stored(self, path: str, gated: bool) -> TensorMapping:
        """Where a parameter of ours is kept, its layer's number filled in."""
        layer = re.search(r"coder_(\d+)\.", path)
        pattern = re.sub(r"coder_\d+\.", "coder_{i}.", path)
        table = {**self.names, **self.gated} if gated else self.names
        return table[pattern].at(int(layer[1])) if layer else table[pattern]


def parameter_shapes(model: Transformer) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of a model over `vocab_rows` tokens.

    Only one layer of each stack is traced: the others are alike, and tracing them would take longer than reading them.

    Examples:
      >>> from kd_jax.models.decoder_only import DecoderOnly
      >>> shapes = parameter_shapes(DecoderOnly(layers=2, d_model=8, heads=2, d_ff=12, vocab_rows=10))
      >>> shapes["embedding"], shapes["decoder_1.ffn.in.kernel"], len(shapes)  # 6 in each layer, and the last norm
      ((10, 8), (8, 24), 14)
    """
    shallow = dataclasses.replace(model, local=(), **dict.fromkeys(model.depth_fields, 1)).build(model.vocab_rows)
    shapes = {}
    for path, leaf in flatten_dict(jax.eval_shape(shallow.init, jax.random.key(0)), sep=".").items():
        stack = re.match(r"(encoder|decoder)_0\.", path)
        layers = model.stacks()[stack[1]] if stack else 1
        shapes |= {path.replace("coder_0.", f"coder_{i}.", 1): leaf.shape for i in range(layers)}
    return shapes
