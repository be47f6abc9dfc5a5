"""Files of a workdir, on a disk or in a bucket (gs://, s3://): each is whole or not there.

On a disk a file is written beside and renamed. A bucket knows no rename, no file to add to and no lock; but what is
uploaded is seen when all of it is there. So a file of a bucket is made on this machine's disk and uploaded at once, and
read from a copy there, since most libraries read what lies on a disk alone.
"""

import contextlib
import functools
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from etils import epath

from kd_jax.errors import KdError
from kd_jax.runtime import hosts

BUCKETS = {"gs://": "gcsfs", "s3://": "s3fs"}  # what a path begins with -> the package that reads and writes there


def as_path(given: str | os.PathLike) -> Path:
    """A path on a disk, or in a bucket (an epath.Path then, which does what a pathlib.Path does).

    Raises:
      KdError: if what reads and writes a bucket is not installed.

    Examples:
      >>> as_path("runs/mine").as_posix(), in_bucket(as_path("runs/mine"))
      ('runs/mine', False)
    """
    given = os.fspath(given)
    for start, package in BUCKETS.items():
        if given.startswith(start):
            _require(given, package)
            return epath.Path(given)
    return Path(given)


def absolute(where: Path) -> Path:
    """From the root, or from the bucket."""
    return where if in_bucket(where) else where.absolute()


def in_bucket(where: Path) -> bool:
    """Whether a path is one of a bucket."""
    return os.fspath(where).startswith(tuple(BUCKETS))


def in_s3(where: Path) -> bool:
    """Whether a path is one that orbax does not know; see kd_jax.artifacts.mirror."""
    return os.fspath(where).startswith("s3://")


def _require(given: str, package: str) -> None:
    try:
        import fsspec

        fsspec.get_filesystem_class(given.partition(":")[0])
    except ImportError as error:
        raise KdError(f"{given}: nothing here reads or writes a bucket; pip install {package}") from error
    # Other hosts and processes write there too, so what was listed once is not believed.
    for protocol in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False


@contextlib.contextmanager
def atomic_path(where: Path) -> Iterator[Path]:
    """A path on a disk to write at; what is there at the end of the block takes the place of `where`."""
    if in_bucket(where):
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / where.name
            yield written
            upload(written, where)
        return
    where.parent.mkdir(parents=True, exist_ok=True)
    written = part_path(where)
    yield written
    with open(written, "rb") as file:
        os.fsync(file.fileno())
    os.replace(written, where)


def part_path(where: Path) -> Path:
    """Where this process writes what it renames to `where`; whoever finds it there knows that a writer was killed."""
    return where.with_name(f"{where.name}.{os.getpid()}.part")


@contextlib.contextmanager
def atomic_write(where: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `where` at the end of the block.

    Of several hosts the first writes, and what the others write goes nowhere.
    """
    if not hosts.is_main_process():
        with open(os.devnull, "wb") as nowhere:
            yield nowhere
        return
    with atomic_path(where) as written, open(written, "wb") as file:
        yield file
        file.flush()


def upload(written: Path, where: Path) -> None:
    """A file of this machine's disk becomes an object."""
    with open(written, "rb") as source, where.open("wb") as target:
        shutil.copyfileobj(source, target, 2**24)


def append_text(where: Path, text: str) -> None:
    """Adds to a file of text; an object, which nothing can be added to, is written anew."""
    if in_bucket(where):
        where.write_text((where.read_text() if where.exists() else "") + text)
        return
    where.parent.mkdir(parents=True, exist_ok=True)
    with open(where, "a", encoding="utf-8") as file:
        file.write(text)


def read_array(where: Path) -> np.ndarray:
    """What numpy.save wrote."""
    return np.load(io.BytesIO(where.read_bytes()))


def read_arrays(where: Path) -> dict[str, np.ndarray]:
    """What numpy.savez wrote."""
    return dict(np.load(io.BytesIO(where.read_bytes())))


def local_copy(where: Path, digest: str) -> Path:
    """A path on this machine's disk with the file's bytes; an object is copied there once for each `digest`."""
    return Path(_copy(os.fspath(where), digest)) if in_bucket(where) else where


@functools.cache
def _copy(where: str, digest: str) -> str:
    target = Path(_copies().name) / digest
    with epath.Path(where).open("rb") as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file, 2**24)
    return str(target)


@functools.cache
def _copies() -> tempfile.TemporaryDirectory:
    """It goes with the process."""
    return tempfile.TemporaryDirectory(prefix="kd_jax_")


def file_size(where: Path) -> int:
    """Bytes of a file."""
    return where.stat().length if in_bucket(where) else where.stat().st_size


def remove_tree(where: Path) -> None:
    """Deletes a folder with all that is in it."""
    if in_bucket(where):
        where.rmtree()
    else:
        shutil.rmtree(where)


def list_files(folder: Path) -> Iterator[Path]:
    """All files of a folder and of the folders in it, sorted."""
    for where in sorted(folder.iterdir()):
        if where.is_dir():
            yield from list_files(where)
        else:
            yield where


def free_bytes(where: Path) -> int | None:
    """Bytes that there is room for; None where there is no end."""
    return None if in_bucket(where) else shutil.disk_usage(where).free
