"""Records of named arrays on disk: encoded examples, and any signal's schema.

A record holds one array per field; its first axis may differ from record to record. Shards are
ArrayRecord files with random access, each written beside and renamed, so a kill loses at most the shard
in the making and writing goes on with the first one missing. The index, written last, holds the schema
and every shard's digest; without it the store does not exist.
"""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from kd_jax.artifacts import files, manifest
from kd_jax.errors import KdError
from kd_jax.runtime import hosts
from kd_jax.types import Field

OPTIONS = "group_size:1,zstd:3"
# A store below this size is read into memory whole: one shard, one sequential read.
IN_MEMORY_BYTES = 512 * 2**20

Schema = Mapping[str, Field]
Record = Mapping[str, np.ndarray]


def pack(schema: Schema, record: Record) -> bytes:
    """The record's bytes: the first axis of every field as uint32, then the fields, little-endian.

    Raises:
      KdError: if a field has another shape than its schema, or a value that its dtype cannot hold.
    """
    lengths, chunks = [], []
    for name, field in schema.items():
        value = np.asarray(record[name])
        if value.shape[1:] != tuple(field.shape):
            raise KdError(f"field {name}: shape {value.shape[1:]} per token; the schema wants {tuple(field.shape)}")
        stored = value.astype(np.dtype(field.dtype).newbyteorder("<"))
        if np.issubdtype(stored.dtype, np.integer) and not np.array_equal(stored, value):
            raise KdError(f"field {name}: a value does not fit into {field.dtype} (largest {value.max()})")
        lengths.append(len(value))
        chunks.append(stored.tobytes())
    return np.asarray(lengths, "<u4").tobytes() + b"".join(chunks)


def unpack(schema: Schema, data: bytes) -> dict[str, np.ndarray]:
    """The inverse of `pack`; the arrays are views of `data`."""
    lengths = np.frombuffer(data, "<u4", len(schema))
    record, offset = {}, lengths.nbytes
    for (name, field), length in zip(schema.items(), lengths, strict=True):
        dtype = np.dtype(field.dtype).newbyteorder("<")
        values = np.frombuffer(data, dtype, int(length) * math.prod(field.shape), offset)
        record[name] = values.reshape(int(length), *field.shape)
        offset += values.nbytes
    return record


def shard_path(folder: Path, name: str, shard: int) -> Path:
    return folder / f"{name}-{shard:05d}.arrayrecord"


def write(
    folder: Path,
    name: str,
    schema: Schema,
    count: int,
    make: Callable[[int, int], Iterable[Record]],
    records_per_shard: int = 4096,
    writer: tuple[int, int] = (0, 1),
) -> str | None:
    """Writes records 0 to count - 1, or goes on where an earlier call was killed.

    Any number of writers may share the work, and a later call may be of another number: writer i of n makes
    the missing shards i, i + n, ... and whoever finds them all there writes the index.

    Args:
      folder: made if needed.
      name: of the store within it.
      schema: field name -> shape per token, and dtype.
      count: number of records.
      make: (start, stop) -> records start to stop - 1; asked only for shards that are missing.
      records_per_shard: what is lost at most.
      writer: (this one's number, number of writers).

    Returns:
      The store's digest, over its schema and all shards; None while other writers' shards are missing.
    """
    shards = -(-count // records_per_shard)
    for shard in range(writer[0], shards, writer[1]):
        if not shard_path(folder, name, shard).exists():
            start, stop = shard * records_per_shard, min(count, (shard + 1) * records_per_shard)
            write_shard(folder, name, shard, schema, make(start, stop))
    if not all(shard_path(folder, name, shard).exists() for shard in range(shards)):
        return None
    counts = [min(records_per_shard, count - start) for start in range(0, count, records_per_shard)]
    return write_index(folder, name, schema, counts, records_per_shard)


def write_all(folder: Path, name: str, schema: Schema, records: Iterable[Record], records_per_shard: int = 4096) -> str:
    """Writes records of which only their end tells how many they are, from the first on; returns as `write`."""
    records, counts = iter(records), []
    while chunk := list(itertools.islice(records, records_per_shard)):
        write_shard(folder, name, len(counts), schema, chunk)
        counts.append(len(chunk))
    return write_index(folder, name, schema, counts, records_per_shard)


def write_shard(folder: Path, name: str, shard: int, schema: Schema, records: Iterable[Record]) -> None:
    """Writes one shard beside, then renames it."""
    # Its own name for every process: should two make the same shard, both are whole and the same.
    with files.atomic_path(shard_path(folder, name, shard)) as path:
        file_writer = ArrayRecordWriter(str(path), OPTIONS)
        for record in records:
            file_writer.write(pack(schema, record))
        file_writer.close()


def write_index(folder: Path, name: str, schema: Schema, counts: Sequence[int], records_per_shard: int) -> str:
    """Finishes a store whose shards are all there.

    Args:
      counts: records of each shard.
      records_per_shard: of every one but the last, where they are as many.

    Returns:
      The store's digest, over its schema and all shards.
    """
    for left in folder.glob(f"{name}-*.part"):  # of writers that were killed
        left.unlink(missing_ok=True)
    even = all(count == records_per_shard for count in counts[:-1]) and sum(counts[-1:]) <= records_per_shard
    index = {
        "schema": {key: [list(field.shape), field.dtype] for key, field in schema.items()},
        "count": sum(counts),
        "records_per_shard": records_per_shard if even else list(counts),
        "shards": [manifest.file_digest(shard_path(folder, name, shard)) for shard in range(len(counts))],
    }
    index["digest"] = _digest(index)
    if hosts.is_main_process():
        manifest.write_json(folder / f"{name}.index.json", index)
    return index["digest"]


def read_index(path: Path) -> dict[str, Any]:
    """A store's index; raises KdError if it is not as it was written."""
    index = manifest.read_json(path)
    if "digest" not in index or index["digest"] != _digest({k: v for k, v in index.items() if k != "digest"}):
        raise KdError(f"{path}: not as it was written; redo the phase that makes it with --force")
    return index


def _digest(index: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(index).encode(), digest_size=16).hexdigest()


def remove_damaged(folder: Path, name: str) -> list[Path]:
    """Deletes the shards of a finished store whose bytes are not those that were written, so that `write` remakes them.

    Returns:
      The paths of damaged and missing shards.
    """
    index = read_index(folder / f"{name}.index.json")
    paths = [shard_path(folder, name, shard) for shard in range(len(index["shards"]))]
    damaged = [
        path
        for path, digest in zip(paths, index["shards"], strict=True)
        if not path.exists() or manifest.file_digest(path) != digest
    ]
    for path in damaged:
        path.unlink(missing_ok=True)
    return damaged


class Store:
    """A finished store: `len`, and `[i]` for record i. A shard's digest is checked when it is first opened."""

    def __init__(self, folder: Path, name: str):
        """Raises KdError if the store was not finished or a shard is missing."""
        self._folder, self._name = folder, name
        path = folder / f"{name}.index.json"
        if not path.exists():
            raise KdError(f"{path}: missing; the store was not finished, run the phase that makes it again")
        index = read_index(path)
        self.schema = {key: Field(tuple(shape), dtype) for key, (shape, dtype) in index["schema"].items()}
        self.digest, self._count, self._digests = index["digest"], index["count"], index["shards"]
        counts = index["records_per_shard"]  # of every shard, or a list where they differ
        if not isinstance(counts, list):
            counts = [counts] * len(self._digests)
        self._starts = np.cumsum([0, *counts])  # the first record of each shard
        self._shards: dict[int, list[bytes] | ArrayRecordReader] = {}
        for shard in range(len(self._digests)):
            if not shard_path(folder, name, shard).exists():
                raise KdError(
                    f"{shard_path(folder, name, shard)}: missing; for a cache run the phase `cache` again, which makes "
                    "this shard anew; for data `prepare --force`"
                )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        records, row = self._open(shard), int(i - self._starts[shard])
        return unpack(self.schema, records[row] if isinstance(records, list) else records.read([row])[0])

    @functools.cached_property
    def _in_memory(self) -> bool:
        return self.bytes() < IN_MEMORY_BYTES

    def bytes(self) -> int:
        """Size of all shards on disk."""
        return sum(files.file_size(shard_path(self._folder, self._name, s)) for s in range(len(self._digests)))

    def _open(self, shard: int) -> list[bytes] | ArrayRecordReader:
        if shard not in self._shards:
            path, digest = shard_path(self._folder, self._name, shard), self._digests[shard]
            on_disk = files.local_copy(path, digest)
            if manifest.file_digest(on_disk) != digest:
                raise KdError(
                    f"{path}: its bytes are not those that were written; for a cache run the phase `cache` again, "
                    "which makes this shard anew; for data `prepare --force`"
                )
            reader = ArrayRecordReader(str(on_disk))
            self._shards[shard] = reader.read_all() if self._in_memory else reader
        return self._shards[shard]
