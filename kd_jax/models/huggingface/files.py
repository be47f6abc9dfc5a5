"""Files of Hugging Face's layout: config.json, and safetensors in one file or in shards."""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from kd_jax.errors import KdError

SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 2**30
MAX_JSON_BYTES = 100_000_000  # as safetensors allows for the header of a file


def require_file(path: Path) -> None:
    """Raise KdError if a path is no regular file: opening a pipe would hang, and a device has no end."""
    if not path.is_file():
        raise KdError(f"{path}: expected a file, got {'a pipe, device or folder' if path.exists() else 'none'}.")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of at most MAX_JSON_BYTES."""
    require_file(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise KdError(f"{path}: expected at most {MAX_JSON_BYTES:,} bytes of JSON, got {path.stat().st_size:,}.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KdError(f"{path}: expected a JSON file of Hugging Face's layout, got: {error}.") from error
    if not isinstance(data, dict):
        raise KdError(f"{path}: expected a JSON object, got {type(data).__name__}.")
    return data


class Tensors:
    """The tensors of a folder, loaded one at a time.

    As in transformers, model.safetensors is read if there is one, and shards otherwise.

    Attributes:
      paths: name of a tensor -> its file.
      shapes: name of a tensor -> its shape; no larger than its file.
      dtypes: name of a tensor -> its type, such as "F32".
    """

    def __init__(self, folder: Path):
        """Read the names and shapes of all tensors of a folder with safetensors."""
        if (folder / SINGLE_FILE).exists():
            names = [SINGLE_FILE]
        elif (folder / INDEX).exists():
            names = _read_index(folder)
        else:
            raise KdError(
                f"{folder}: expected {SINGLE_FILE} or {INDEX}, got neither. "
                "Convert the model to safetensors; pickled weights are not read."
            )
        self.paths: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in (folder / name for name in names):
            try:
                if path.exists():
                    require_file(path)
                with safetensors.safe_open(path, framework="numpy") as file:
                    for tensor in file.keys():  # noqa: SIM118  # the file itself is not iterable
                        part = file.get_slice(tensor)
                        self.shapes[tensor] = tuple(part.get_shape())
                        self.dtypes[tensor] = part.get_dtype()
                        self.paths[tensor] = path
            except (OSError, safetensors.SafetensorError) as error:
                raise KdError(
                    f"{path}: expected a safetensors file, got a missing or damaged one ({error}). Download it again."
                ) from error

    def load(self, name: str) -> np.ndarray:
        """Return a tensor in float32."""
        # The file is mapped anew each time, because mapped pages count as memory of the process.
        with safetensors.safe_open(self.paths[name], framework="numpy") as file:
            return np.asarray(file.get_tensor(name), np.float32)


def _read_index(folder: Path) -> list[str]:
    """Return the names of the shards, in the order in which transformers reads them."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise KdError(
            f"{folder / INDEX}: weight_map: expected the file of each tensor, got {reprlib.repr(weight_map)}."
        )
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise KdError(
                f"{folder / INDEX}: weight_map: expected names of files in the folder, got {reprlib.repr(name)}."
            )
    return sorted(set(weight_map.values()))


def write_files(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write config.json and the weights, in shards of at most SHARD_BYTES."""
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(x.nbytes for x in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    count = len(shards)
    names = [SINGLE_FILE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for file_name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / file_name, metadata={"format": "pt"})
    if count > 1:
        weight_map = {tensor: file_name for file_name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
