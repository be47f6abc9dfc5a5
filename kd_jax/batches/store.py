"""Records of named arrays on disk: encoded examples, and any signal's schema.

A record holds one array for each field; its first axis may differ from record to record. Shards are ArrayRecord files
with random access. Each shard is written under a temporary name and then renamed, so a killed process loses at most one
shard, and the next call resumes with the first missing one. The index is written last. It holds the schema and every
shard's digest; a store without an index is unfinished.
"""

import dataclasses
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
from kd_jax.fields import check_type, show
from kd_jax.runtime import hosts
from kd_jax.types import Field

REMEDY = "Run `cache` again to write this shard of a cache anew, or `prepare --force` for data."
IN_MEMORY_BYTES = 512 * 2**20  # a smaller store is read into memory, each shard by one sequential read

INDEX_TYPES = {
    "schema": Mapping[str, tuple[tuple[int, ...], str]],
    "count": int,
    "records_per_shard": int | tuple[int, ...],
    "shards": tuple[str, ...],
}

Schema = Mapping[str, Field]
Record = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Index:
    """What a finished store holds, as in NAME.index.json: records and digest of each shard, and a digest over all."""

    schema: Schema
    counts: Sequence[int]
    shards: Sequence[str]
    digest: str


def pack(schema: Schema, record: Record) -> bytes:
    """Return a record's bytes: the length of every field's first axis as uint32, then the fields, little-endian."""
    lengths, chunks = [], []
    for name, field in schema.items():
        value = np.asarray(record[name])
        if value.shape[1:] != tuple(field.shape):
            raise KdError(f"field {name}: expected shape {field.shape} per token, got {value.shape[1:]}. Correct it.")
        values = value.astype(np.dtype(field.dtype).newbyteorder("<"))
        if np.issubdtype(values.dtype, np.integer) and not np.array_equal(values, value):
            raise KdError(f"field {name}: expected values that fit into {field.dtype}, got {value.max()}. Enlarge it.")
        lengths.append(len(value))
        chunks.append(values.tobytes())
    return np.asarray(lengths, "<u4").tobytes() + b"".join(chunks)


def unpack(schema: Schema, data: bytes) -> dict[str, np.ndarray]:
    """Return the record that `pack` encoded; the arrays are views of `data`."""
    lengths = np.frombuffer(data, "<u4", len(schema))
    record, offset = {}, lengths.nbytes
    for (name, field), length in zip(schema.items(), lengths, strict=True):
        dtype = np.dtype(field.dtype).newbyteorder("<")
        values = np.frombuffer(data, dtype, int(length) * math.prod(field.shape), offset)
        record[name] = values.reshape(int(length), *field.shape)
        offset += values.nbytes
    return record


def shard_path(folder: Path, name: str, shard: int) -> Path:
    """Return the path of a shard."""
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
    """Write records 0 to count - 1; resume where an earlier call was killed.

    Several writers may share the work, and their number may change from call to call: writer i of n writes the missing
    shards i, i + n, ... A writer that finds all shards complete writes the index.

    Args:
      folder: created if missing.
      name: of the store within it.
      schema: field name -> shape per token, and dtype.
      count: number of records.
      make: (start, stop) -> records start to stop - 1; called only for missing shards.
      records_per_shard: the most that a killed process loses.
      writer: (index of this writer, number of writers).

    Returns:
      The store's digest; None while shards of other writers are missing.
    """
    index, writers = writer
    shards = -(-count // records_per_shard)
    for shard in range(index, shards, writers):
        if not shard_path(folder, name, shard).exists():
            start, stop = shard * records_per_shard, min(count, (shard + 1) * records_per_shard)
            write_shard(folder, name, shard, schema, make(start, stop))
    if not all(shard_path(folder, name, shard).exists() for shard in range(shards)):
        return None
    counts = [min(records_per_shard, count - start) for start in range(0, count, records_per_shard)]
    return write_index(folder, name, schema, counts, records_per_shard)


def write_stream(
    folder: Path, name: str, schema: Schema, records: Iterable[Record], records_per_shard: int = 4096
) -> str:
    """Write records whose number is not known in advance; return the store's digest."""
    records, counts = iter(records), []
    while chunk := list(itertools.islice(records, records_per_shard)):
        write_shard(folder, name, len(counts), schema, chunk)
        counts.append(len(chunk))
    return write_index(folder, name, schema, counts, records_per_shard)


def write_shard(folder: Path, name: str, shard: int, schema: Schema, records: Iterable[Record]) -> None:
    """Write one shard under a temporary name, then rename it."""
    # The temporary name is unique to the process: if two processes write the same shard, both write the same bytes.
    with files.atomic_path(shard_path(folder, name, shard)) as path:
        file_writer = ArrayRecordWriter(str(path), "group_size:1,zstd:3")
        for record in records:
            file_writer.write(pack(schema, record))
        file_writer.close()


def write_index(folder: Path, name: str, schema: Schema, counts: Sequence[int], records_per_shard: int) -> str:
    """Write the index of a store whose shards are complete; return the store's digest."""
    for part in folder.glob(f"{name}-*.part"):  # of killed writers
        part.unlink(missing_ok=True)
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


def read_index(path: Path) -> Index:
    """Return a store's index."""
    index = manifest.read_json(path)
    check_type(index, Mapping[str, Any], str(path))
    digest = index.pop("digest", None)
    if digest != _digest(index):
        raise KdError(f"{path}: expected the bytes that were written, got modified ones. Write it again with --force.")
    for name, hint in INDEX_TYPES.items():
        check_type(index.get(name), hint, f"{path}: {name}")
    counts = index["records_per_shard"]  # of every shard but the last, or a list where they differ
    if not isinstance(counts, list):
        # Slices of a range, whose numbers are not made: a stranger's count may be any.
        counts = [len(range(index["count"])[i * counts : (i + 1) * counts]) for i in range(len(index["shards"]))]
    if len(counts) != len(index["shards"]) or sum(counts) != index["count"] or min(counts, default=0) < 0:
        raise KdError(f"{path}: expected the records of each shard, got {show(counts)}. Write it again with --force.")
    schema = {key: Field(tuple(shape), dtype) for key, (shape, dtype) in index["schema"].items()}
    for key, field in schema.items():
        if not _is_dtype(field.dtype) or any(size < 1 for size in field.shape):
            raise KdError(f"{path}: schema.{key}: expected a shape and a dtype, got {show(field)}.")
    return Index(schema, counts, index["shards"], digest)


def _is_dtype(name: str) -> bool:
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        return False
    return dtype.itemsize > 0 and not dtype.hasobject


def _digest(index: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(index).encode(), digest_size=16).hexdigest()


def remove_damaged(folder: Path, name: str) -> list[Path]:
    """Delete a store's modified shards; return their paths and those of missing ones."""
    index = read_index(folder / f"{name}.index.json")
    paths = [shard_path(folder, name, shard) for shard in range(len(index.shards))]
    intact = [path.exists() and manifest.file_digest(path) == index.shards[i] for i, path in enumerate(paths)]
    damaged = [path for i, path in enumerate(paths) if not intact[i]]
    for path in damaged:
        path.unlink(missing_ok=True)
    return damaged


class Store:
    """A finished store: `len(store)`, and `store[i]` for record i.

    A shard's digest is checked when it is first opened.
    """

    def __init__(self, folder: Path, name: str):
        """Read the index; an unfinished store or a missing shard is an error."""
        self._folder, self._name = folder, name
        path = folder / f"{name}.index.json"
        if not path.exists():
            raise KdError(f"{path}: expected the index of a finished store, got no file. Run the phase that writes it.")
        index = read_index(path)
        self.schema, self.digest, self._shard_digests = index.schema, index.digest, index.shards
        self._starts = np.cumsum([0, *index.counts])  # the first record of each shard
        self._shards: dict[int, list[bytes] | ArrayRecordReader] = {}
        for shard in range(len(self._shard_digests)):
            if not shard_path(folder, name, shard).exists():
                raise KdError(f"{shard_path(folder, name, shard)}: expected a file, got a missing shard. {REMEDY}")

    def __len__(self) -> int:
        """Return the number of records."""
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """Return record i."""
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        records, row = self._open(shard), int(i - self._starts[shard])
        try:
            return unpack(self.schema, records[row] if isinstance(records, list) else records.read([row])[0])
        except (ValueError, IndexError, RuntimeError) as error:  # bytes of another schema, or too few records
            path = shard_path(self._folder, self._name, shard)
            raise KdError(f"{path}: expected record {row} of the index's schema, got another. {REMEDY}") from error

    def num_bytes(self) -> int:
        """Return the size of all shards on disk, in bytes."""
        shards = range(len(self._shard_digests))
        return sum(files.file_size(shard_path(self._folder, self._name, shard)) for shard in shards)

    def _open(self, shard: int) -> list[bytes] | ArrayRecordReader:
        if shard not in self._shards:
            path, digest = shard_path(self._folder, self._name, shard), self._shard_digests[shard]
            on_disk = files.local_copy(path, digest)
            if manifest.file_digest(on_disk) != digest:
                raise KdError(f"{path}: expected the bytes that were written, got modified ones. {REMEDY}")
            try:
                reader = ArrayRecordReader(str(on_disk))
                self._shards[shard] = reader.read_all() if self.num_bytes() < IN_MEMORY_BYTES else reader
            except (ValueError, IndexError, RuntimeError) as error:
                raise KdError(f"{path}: expected ArrayRecord, got another format. {REMEDY}") from error
        return self._shards[shard]
