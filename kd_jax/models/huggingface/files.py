"""The files of a model in Hugging Face's layout: config.json and safetensors, whole or in shards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from kd_jax.errors import KdError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 2**30


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises KdError naming the file if it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KdError(f"{path}: {error}; wanted a file of Hugging Face's layout") from error
    if not isinstance(data, dict):
        raise KdError(f"{path}: {type(data).__name__}; wanted a JSON object")
    return data


class Tensors:
    """The tensors of a folder, read one at a time.

    Attributes:
      where: name -> the file that holds it.
      shapes: name -> shape.
    """

    def __init__(self, folder: Path):
        """Raises KdError if a file is missing, cut, or not safetensors."""
        if (folder / INDEX).exists():
            names = set(read_json(folder / INDEX).get("weight_map", {}).values())
        elif (folder / WHOLE).exists():
            names = {WHOLE}
        else:
            raise KdError(f"{folder}: neither {WHOLE} nor {INDEX}; wanted safetensors (pickled weights are not read)")
        self.where: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in sorted(names):
            path = folder / name
            if not isinstance(name, str) or path.parent != folder:
                raise KdError(f"{folder / INDEX}: {name!r} is not a file of the folder")
            try:
                with safetensors.safe_open(path, framework="numpy") as file:
                    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                    self.shapes |= {name: tuple(one.get_shape()) for name, one in slices.items()}
                self.where |= dict.fromkeys(slices, path)
            except (OSError, safetensors.SafetensorError) as error:
                raise KdError(f"{path}: cut or damaged ({error}); fetch the file again") from error

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32. The file is mapped anew each time: what stays mapped counts as this process's memory."""
        with safetensors.safe_open(self.where[name], framework="numpy") as file:
            return np.asarray(file.get_tensor(name), np.float32)


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """config.json and the weights, in shards where they are many bytes."""
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(x.nbytes for x in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    count = len(shards)
    files = [WHOLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    if count > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
