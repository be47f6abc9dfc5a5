"""Files of a workdir, on a disk or in a bucket (gs://, s3://); each file is whole or missing.

On a disk a file is written under another name and renamed. A bucket has no rename, no append and no lock, but an object
appears only when its upload is complete. So a file for a bucket is written to this machine's disk and uploaded, and
read from a copy there, since most libraries read local files alone.

Each function writes on whatever host calls it. Where several hosts share a file, the caller checks
`hosts.is_main_process`.
"""

import contextlib
import errno
import functools
import io
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from etils import epath

from kd_jax.errors import KdError

REDO = " Run its phase with --force again."
BUCKETS = {"gs://": "gcsfs", "s3://": "s3fs"}  # start of a path -> the package that reads and writes there


def as_path(path: str | os.PathLike) -> Path:
    """Return a path on a disk, or an `epath.Path` in a bucket, which has the methods of a `pathlib.Path`."""
    text = os.fspath(path)
    if not in_bucket(text):
        return Path(text)
    _require_client(text)
    return cast(Path, epath.Path(text))


def check_path(field: str, path: str | os.PathLike) -> None:
    """Check that a path names something: not "", no `~` that no shell has expanded, no unknown kind of URL.

    Examples:
      >>> check_path("--workdir", "s4://bucket/run")
      Traceback (most recent call last):
      kd_jax.errors.KdError: --workdir: expected a path, gs://... or s3://..., got 's4://bucket/run'. Change it.
    """
    text = os.fspath(path)
    url = re.match(r"(\w+):/", text)
    if not text or "\0" in text or (url and url[1] not in ("gs", "s3")):
        raise KdError(f"{field}: expected a path, gs://... or s3://..., got {text!r}. Change it.")
    if text.startswith("~"):
        raise KdError(f"{field}: expected a path, got {text!r}, which no shell has expanded. Write it out.")


def absolute(path: Path) -> Path:
    """Return a path from the root, or from the bucket."""
    return path if in_bucket(path) else path.absolute()


def in_bucket(path: str | os.PathLike) -> bool:
    """Return whether a path is in a bucket; refuse `pathlib.Path("gs://...")`, which is a local folder "gs:"."""
    text = os.fspath(path)
    if match := re.match(r"(gs|s3):/(?!/)", text):
        raise KdError(f"{text}: expected {match[1]}://BUCKET/... as a string, got a pathlib.Path. Pass the string.")
    return text.startswith(tuple(BUCKETS))


def in_s3(path: Path) -> bool:
    """Return whether a path is in s3://, which orbax does not know; see kd_jax.artifacts.mirror."""
    return os.fspath(path).startswith("s3://")


def _require_client(path: str) -> None:
    protocol = path.partition(":")[0]
    try:
        import fsspec
        from fsspec.config import conf

        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = BUCKETS[f"{protocol}://"]
        raise KdError(f"{path}: expected the package {package}, not installed. Run `pip install {package}`.") from error
    # Other hosts and processes write there too, so a listing must not be cached.
    for protocol in ("gs", "gcs", "s3"):
        conf.setdefault(protocol, {})["use_listings_cache"] = False


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path on a disk to write a file at, which replaces `path` at the end of the block."""
    if in_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            local_path = Path(folder) / path.name
            yield local_path
            upload(local_path, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    local_path = part_path(path)
    yield local_path
    with open(local_path, "rb") as file:
        os.fsync(file.fileno())
    os.replace(local_path, path)


def part_path(path: Path) -> Path:
    """Return the path where this process writes before it renames; a killed process leaves its file there."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` at the end of the block."""
    with atomic_path(path) as local_path, open(local_path, "wb") as file:
        yield file
        file.flush()


def upload(local_path: Path, path: Path) -> None:
    """Upload a file of this machine's disk as an object."""
    with open(local_path, "rb") as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 2**24)


def create_object(path: Path, data: bytes) -> bool:
    """Create an object unless one of its name exists; return whether this call created it.

    The bucket checks the condition, so exactly one of several calls at once succeeds. Different calls must pass
    different data: a client that repeats a lost request is answered that the object exists.
    """
    import fsspec

    client, name = fsspec.core.url_to_fs(os.fspath(path))
    try:
        client.pipe_file(name, data, mode="create")  # ifGenerationMatch=0 for gs://, If-None-Match: * for s3://
    except OSError:  # FileExistsError of both clients, and a network's errors
        if not path.exists():
            raise
        return path.read_bytes() == data
    return True


def append_text(path: Path, text: str) -> None:
    """Append to a text file; an object is written anew, since a bucket cannot append."""
    if in_bucket(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def read_array(path: Path) -> np.ndarray:
    """Return the array in a .npy file."""
    return _parse_array(path, path.read_bytes())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays in an .npz file of `np.savez`, by name."""
    data = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            # Not compressed, so that no array is larger than the file.
            if sum(entry.file_size for entry in entries) > len(data):
                raise ValueError("compressed entries")
            return {entry.filename.removesuffix(".npy"): _parse_array(path, archive.read(entry)) for entry in entries}
    except (ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError) as error:
        raise KdError(f"{path}: expected arrays as kd_jax writes them, got others ({error}).{REDO}") from error


def _parse_array(path: Path, data: bytes) -> np.ndarray:
    """Return the array in the bytes of a .npy file; nothing is allocated for more than the bytes hold."""
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError(f"{len(data) - stream.tell()} bytes for shape {shape}")
        return np.load(io.BytesIO(data))  # it refuses objects
    except Exception as error:  # NumPy lets errors of the tokenizer through, which reads the header
        reason = " ".join(str(error).split())[:120]
        raise KdError(f"{path}: expected an array as kd_jax writes it, got another ({reason}).{REDO}") from error


def local_copy(path: Path, digest: str) -> Path:
    """Return a path on this machine's disk with the file's bytes; an object is copied once for each `digest`."""
    return Path(_download(os.fspath(path), digest)) if in_bucket(path) else path


@functools.cache
def _download(path: str, digest: str) -> str:
    target = Path(_downloads().name) / digest
    with epath.Path(path).open("rb") as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file, 2**24)
    return str(target)


@functools.cache
def _downloads() -> tempfile.TemporaryDirectory:
    """Return a folder that is deleted with the process."""
    return tempfile.TemporaryDirectory(prefix="kd_jax_")


def file_size(path: Path) -> int:
    """Return the size of a file in bytes."""
    return epath.Path(path).stat().length if in_bucket(path) else path.stat().st_size


def remove_tree(path: Path) -> None:
    """Delete a folder and its contents."""
    if in_bucket(path):
        epath.Path(path).rmtree()
    else:
        shutil.rmtree(path)


def list_files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, sorted."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from list_files(path)
        else:
            yield path


def check_inside(folder: Path) -> None:
    """Check that no link in a folder leads out of it, and that all else in it are files and folders.

    The folder may be a stranger's: what is written through a link would change files of the user. The folder itself may
    be a link, since the user has named it.

    Raises:
      KdError: names the first such path.
    """
    root = os.path.realpath(folder)
    for path, folders, names in os.walk(folder):
        for one in (Path(path, name) for name in sorted(folders + names)):
            if one.is_symlink():
                target = os.path.realpath(one)
                if os.path.commonpath([root, target]) != root:
                    raise KdError(
                        f"{one}: expected a file or folder of the workdir, got a link out of it, to {target}. "
                        "Remove it, or copy the folder there."
                    )
            elif one.exists() and not (one.is_file() or one.is_dir()):
                raise KdError(f"{one}: expected a file or a folder, got a pipe, socket or device. Remove it.")


def open_unlinked(path: str, flags: int) -> int:
    """Open a file as `open` does with `opener=open_unlinked`, but never through a link.

    Raises:
      KdError: if the path is a link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise KdError(f"{path}: expected a file of kd_jax, got a link. Remove it.") from error


def free_bytes(path: Path) -> int | None:
    """Return the free bytes of a path's disk; None for a bucket."""
    return None if in_bucket(path) else shutil.disk_usage(path).free
