"""Folders of phases: what made a folder, from which inputs, and the digest of each file.

An unfinished folder is never taken for a finished one, nor an edited file for the original. Folders with foreign files
are never emptied.
"""

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.artifacts import files
from kd_jax.errors import KdError
from kd_jax.fields import check_type, show
from kd_jax.runtime import hosts

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "sentencepiece")
OURS = ("inputs.json", "manifest.json")
RECORD_TYPES = {
    "phase": str,
    "inputs": Mapping[str, Any],
    "outputs": Mapping[str, Any],
    "files": Mapping[str, str],
    "seconds": float,
    "created": str,
    "versions": Mapping[str, str],
}
OUTPUT_TYPES = {  # of all phases, as far as a later phase reads them
    **dict.fromkeys(("digest", "dataset", "tokenizer", "dtype", "first_parameters"), str),
    **dict.fromkeys(("vocab_size", "start", "eos", "pad", "best_step", "steps", "records", "target_tokens"), int),
    **dict.fromkeys(("parameters", "parameters_outside_embeddings", "skipped_too_long", "bytes"), int),
    **dict.fromkeys(("bytes_per_target_token", "valid_cross_entropy", "train_tokens_per_second"), float | None),
    "sampling_seconds": float,
    "loss_before_first_step": float | None,
    "splits": Mapping[str, str],
    "counts": Mapping[str, int],
    "dropped_as_seen_in_training": Mapping[str, int],
    "files": Mapping[str, int],
    "models": tuple[str, ...],
}
IMPORT_PHASE = "import-logprobs"  # its manifest stands for a teacher without parameters


@dataclasses.dataclass(frozen=True)
class Folder:
    """The output of one phase.

    It has an `inputs.json` from its start and a `manifest.json` once it is finished. With several hosts the main
    process begins and finishes it, and the others wait.

    Attributes:
      path: the folder.
      phase: the command that writes it.
      student: the student whose folder this one is in; "" for none.
    """

    path: Path
    phase: str
    student: str = ""

    def begin(self, inputs: Mapping[str, Any], force: bool = False) -> bool:
        """Open the folder for a phase with flat, JSON-able inputs; return whether there is work to do.

        A folder that was finished with the same inputs needs no work, one that was begun with them is resumed. Raise
        KdError on other inputs, unless `force` empties the folder, and on files that no phase wrote.
        """
        return hosts.run_on_main(lambda: self._begin(inputs, force))

    def _begin(self, inputs: Mapping[str, Any], force: bool) -> bool:
        self._refuse_foreign_files()
        if force and self.path.exists():
            files.remove_tree(self.path)
        if self.has_output():  # a begun folder without output may change
            self.check_inputs(inputs)
        else:
            write_json(self.path / "inputs.json", {"phase": self.phase, "inputs": dict(inputs)})
        return not self.finished()

    def finish(self, outputs: Mapping[str, Any], seconds: float) -> None:
        """Mark the phase as finished, with JSON-able outputs and its seconds; the manifest is its last file."""
        hosts.run_on_main(lambda: self._finish(outputs, seconds))

    def _finish(self, outputs: Mapping[str, Any], seconds: float) -> None:
        manifest = {
            "phase": self.phase,
            "inputs": self.inputs(),
            "outputs": dict(outputs),
            # Shards and checkpoints have digests of their own.
            "files": {name: file_digest(self.path / name) for name in self._contents() if self._has_digest(name)},
            "seconds": seconds,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
            | {"python": platform.python_version()},
        }
        write_json(self.path / "manifest.json", manifest | {"digest": _digest(manifest)})

    def finished(self) -> bool:
        """Return whether the phase is finished."""
        return (self.path / "manifest.json").exists()

    def has_output(self) -> bool:
        """Return whether the phase has begun and written files, so that the folder depends on its inputs."""
        return self.finished() or ((self.path / "inputs.json").exists() and self._contents() != ["inputs.json"])

    def manifest(self) -> dict[str, Any]:
        """Return the folder's manifest."""
        path = self.path / "manifest.json"
        if not path.exists():
            raise KdError(f"{self.path}: expected a finished folder, got no manifest.json. Run `{self.phase}` first.")
        manifest = self._read_record(path)
        if manifest.pop("digest", None) != _digest(manifest):
            raise KdError(f"{path}: expected the manifest as written, got an edited one. {self._remedy}")
        outputs = _Record(manifest["outputs"], f"{path}: outputs", self._remedy)
        for name in outputs.keys() & OUTPUT_TYPES.keys():
            check_type(outputs[name], OUTPUT_TYPES[name], f"{path}: outputs.{name}")
        return manifest | {"outputs": outputs}

    def _read_record(self, path: Path) -> dict[str, Any]:
        """Return a manifest or the inputs of a phase; the types are checked, since a stranger may have written it."""
        value = read_json(path)
        if not isinstance(value, dict):
            raise KdError(f"{path}: expected an object, got {show(value)}. {self._remedy}")
        record = _Record(value, str(path), self._remedy)
        for name in record.keys() & RECORD_TYPES.keys():
            check_type(record[name], RECORD_TYPES[name], f"{path}: {name}")
        return record

    def digest(self) -> str:
        """Return the digest of the finished folder's manifest; no other call of the phase gives the same."""
        return _digest(self.manifest())

    def outputs(self) -> dict[str, Any]:
        """Return the outputs of the finished phase; raise as `manifest`."""
        return self.manifest()["outputs"]

    def inputs(self) -> dict[str, Any]:
        """Return the inputs that the phase was begun with; raise as `manifest`."""
        return (self.manifest() if self.finished() else self._read_record(self.path / "inputs.json"))["inputs"]

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Check that the folder was begun with these inputs; raise KdError for the first that differs."""
        before, now = self.inputs(), json.loads(json.dumps(dict(inputs)))
        for name in sorted(now.keys() | before.keys()):
            if name not in now or name not in before or before[name] != now[name]:
                raise self.other_input(name, before, now)

    def other_input(self, name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> KdError:
        """Return the error for an input that differs from the one that the folder was made with.

        Args:
          name: a field of the experiment, "consumed.NAME" for the digest of what the phase read, or "code.MODULE" for
            the digest of a module of the user's.
          before: the folder's inputs.
          now: the inputs that it would be made with now.
        """
        old, new = (json.dumps(inputs[name]) if name in inputs else "absent" for inputs in (before, now))
        kind, _, rest = name.partition(".")
        if kind == "consumed":
            problem = f"expected to be made with {rest} {new}, got {old}"
        elif kind == "code":
            problem = f"the source of {rest} has changed: expected {old}, which the folder was made with, got {new}"
        else:
            problem = f"expected {name} = {old}, which the folder was made with, got {new}"
        return KdError(f"{self.path}: {problem}. Choose another --workdir, or run `{self._redo}`.")

    def file(self, name: str) -> Path:
        """Return the path of a file of the finished phase, its bytes checked."""
        path, digests = self.path / name, self.manifest()["files"]
        if name not in digests:
            raise KdError(f"{path}: expected a file that `{self.phase}` wrote, got a foreign one. {self._remedy}")
        if not path.is_file():
            raise KdError(f"{path}: expected a file that `{self.phase}` wrote, missing. {self._remedy}")
        if file_digest(path) != digests[name]:
            raise KdError(f"{path}: expected the bytes that `{self.phase}` wrote, got others. {self._remedy}")
        return path

    @property
    def _redo(self) -> str:
        option = {"student": f" --only {self.student or self.path.name}"}
        if self.student:
            option[IMPORT_PHASE] = f" --student {self.student}"
        return f"{self.phase} --force{option.get(self.phase, '')}"

    @property
    def _remedy(self) -> str:
        return f"Run `{self._redo}` again."

    def _contents(self) -> list[str]:
        """Return the names in the folder, without partial files of killed writers."""
        names = sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []
        return [name for name in names if not name.endswith(".part")]

    def _has_digest(self, name: str) -> bool:
        return (self.path / name).is_file() and name not in OURS and not name.endswith(".arrayrecord")

    def _refuse_foreign_files(self) -> None:
        """Raise KdError if the folder has files and no phase, or another phase, wrote them."""
        if self.path.exists() and not self.path.is_dir():
            raise KdError(f"{self.path}: expected a folder for `{self.phase}`, got a file. Choose another --workdir.")
        contents = self._contents()
        if not contents:
            return
        for name in OURS:
            if name in contents and "phase" in (record := self._read_record(self.path / name)):
                # Also with force: one phase does not delete the work of another.
                if record["phase"] != self.phase and contents != ["inputs.json"]:
                    raise KdError(
                        f"{self.path}: expected files of `{self.phase}`, got files of `{record['phase']}`. Choose "
                        "another --workdir."
                    )
                return
        raise KdError(
            f"{self.path}: expected files of kd_jax, got {contents[0]}, or inputs.json was deleted. Move the files "
            "away, or choose another --workdir."
        )


class _Record(dict[str, Any]):
    """An object that a phase wrote; a missing key is a KdError."""

    def __init__(self, values: Mapping[str, Any], where: str, remedy: str):
        """Take the values; `where` and `remedy` are for the message."""
        super().__init__(values)
        self._where, self._remedy = where, remedy

    def __missing__(self, name: str) -> Any:
        raise KdError(f"{self._where}: expected {name}, got none. {self._remedy}")

    def __or__(self, other: Any) -> "_Record":
        return _Record({**self, **other}, self._where, self._remedy)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Return the blake2b digest of a file, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is whole or missing."""
    with files.atomic_write(path) as file:
        file.write(data)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file, as `write_bytes`; `files.read_array` reads it."""
    with files.atomic_write(path) as file:
        np.save(file, array)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz file of named arrays, as `write_bytes`; `files.read_arrays` reads it."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]  # its stub takes each name for allow_pickle
    write_bytes(path, buffer.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, as `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON-able value, as `write_bytes`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON-able row a line, as `write_bytes`."""
    with files.atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_lines(path: Path) -> list[Any]:
    """Return the rows of a file of `write_lines`; raise as `read_json`."""
    # Not splitlines: a text may contain U+2028, which JSON does not escape.
    return [_parse(line, path) for line in _read_text(path).split("\n")[:-1]]


def read_json(path: Path) -> Any:
    """Return the value in a JSON file."""
    return _parse(_read_text(path), path)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise KdError(f"{path}: expected a file, missing. Run its phase with --force again.") from error
    except IsADirectoryError as error:
        raise KdError(f"{path}: expected a file, got a folder. Remove it and run its phase with --force.") from error
    except UnicodeDecodeError as error:
        raise KdError(f"{path}: expected UTF-8, got damaged bytes. Run its phase with --force again.") from error


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, an integer of thousands of digits, or nested too deeply
        reason = error.msg if isinstance(error, json.JSONDecodeError) else " ".join(str(error).split())[:80]
        raise KdError(
            f"{path}: expected JSON, got damaged text ({reason}). Run its phase with --force again."
        ) from error
