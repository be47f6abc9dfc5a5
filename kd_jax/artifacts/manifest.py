"""What a phase leaves beside its output: what made it, what it consumed, and the digest of every file.

Nothing half-written is ever taken for whole, nothing that was edited for what was written, and no folder is
emptied that this project did not make.
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
from kd_jax.runtime import hosts

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "sentencepiece")
OURS = ("inputs.json", "manifest.json")
IMPORT_PHASE = "import-logprobs"  # the command that stands for a teacher of which there are stored log-probabilities alone


@dataclasses.dataclass(frozen=True)
class Folder:
    """The output of one phase.

    It has an `inputs.json` from its first moment and, once it is whole, a `manifest.json`. Of several hosts the first
    begins and finishes it, and the others wait for that.

    Attributes:
      path: the folder.
      phase: the command that makes it.
    """

    path: Path
    phase: str

    def begin(self, inputs: Mapping[str, Any], force: bool = False) -> bool:
        """Opens the folder for a phase with these inputs; true if there is work to do.

        Finished with the same inputs: false. Begun with the same inputs: true, and what is there may be
        gone on from. `force` empties the folder first.

        Args:
          inputs: flat: configuration fields and the digests of what is consumed; JSON-able.
          force: whether to redo the phase from nothing.

        Raises:
          KdError: if the folder was begun or finished with other inputs (names the first that differs), or holds
            files that no phase made.
        """
        return hosts.run_on_main(lambda: self._begin(inputs, force))

    def _begin(self, inputs: Mapping[str, Any], force: bool) -> bool:
        self._refuse_foreign()
        if force and self.path.exists():
            files.remove_tree(self.path)
        wanted = json.loads(json.dumps(dict(inputs)))
        finished = self.finished()
        begun = finished or (self.path / "inputs.json").exists()
        if begun and (finished or self._contents() != ["inputs.json"]):  # else it was begun, but nothing came of it
            self._refuse_others(self.inputs(), wanted)
        else:
            write_json(self.path / "inputs.json", {"phase": self.phase, "inputs": wanted})
        return not finished

    def finish(self, outputs: Mapping[str, Any], seconds: float) -> None:
        """Marks the phase as done; the manifest is the last file that it writes."""
        hosts.run_on_main(lambda: self._finish(outputs, seconds))

    def _finish(self, outputs: Mapping[str, Any], seconds: float) -> None:
        manifest = {
            "phase": self.phase,
            "inputs": self.inputs(),
            "outputs": dict(outputs),
            # Shards and checkpoints have digests of their own.
            "files": {name: file_digest(self.path / name) for name in self._contents() if self._digested(name)},
            "seconds": seconds,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
            | {"python": platform.python_version()},
        }
        write_json(self.path / "manifest.json", manifest | {"digest": _digest(manifest)})

    def finished(self) -> bool:
        """Whether the phase is done."""
        return (self.path / "manifest.json").exists()

    def manifest(self) -> dict[str, Any]:
        """What made the folder.

        Raises:
          KdError: if the phase is not finished (says which to run), or the manifest is not as it was written.
        """
        path = self.path / "manifest.json"
        if not path.exists():
            raise KdError(f"{self.path}: not finished (no manifest.json); run the phase `{self.phase}` first")
        manifest = read_json(path)
        if "digest" not in manifest or manifest.pop("digest") != _digest(manifest):
            raise KdError(f"{path}: not as it was written; redo `{self.phase} --force`")
        return manifest

    def outputs(self) -> dict[str, Any]:
        """What the phase says of its result; raises as `manifest`."""
        return self.manifest()["outputs"]

    def inputs(self) -> dict[str, Any]:
        """What the phase was begun with; raises as `manifest`."""
        return self.manifest()["inputs"] if self.finished() else read_json(self.path / "inputs.json")["inputs"]

    def file(self, name: str) -> Path:
        """The path of a file that the finished phase left, its bytes checked.

        Raises:
          KdError: if it is missing or its bytes are not those that were written.
        """
        path, digests = self.path / name, self.manifest()["files"]
        if name not in digests:
            raise KdError(f"{path}: not among the files that `{self.phase}` left; redo `{self.phase} --force`")
        if not path.exists():
            raise KdError(f"{path}: missing; redo `{self.phase} --force`")
        if file_digest(path) != digests[name]:
            raise KdError(f"{path}: its bytes are not those that were written; redo `{self.phase} --force`")
        return path

    def _contents(self) -> list[str]:
        """Names in the folder, without what writers that were killed left."""
        names = sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []
        return [name for name in names if not name.endswith(".part")]

    def _digested(self, name: str) -> bool:
        return (self.path / name).is_file() and name not in OURS and not name.endswith(".arrayrecord")

    def _refuse_foreign(self) -> None:
        """Raises KdError if the folder holds anything and none of it says that a phase made it."""
        if self.path.exists() and not self.path.is_dir():
            raise KdError(f"{self.path}: a file; `{self.phase}` wants a folder there, take another --workdir")
        contents = self._contents()
        if not contents:
            return
        for name in OURS:
            if name in contents and "phase" in read_json(self.path / name):
                return self._refuse_other_phase(read_json(self.path / name)["phase"], contents)
        raise KdError(
            f"{self.path}: holds files that kd_jax did not make ({contents[0]}), or its inputs.json was deleted; "
            "move them away or take another --workdir"
        )

    def _refuse_other_phase(self, phase: str, contents: list[str]) -> None:
        """Raises KdError if something came of another phase's work here, even where this one is forced."""
        if phase != self.phase and contents != ["inputs.json"]:
            raise KdError(
                f"{self.path}: `{phase}` made what is there, and `{self.phase}` does not replace it; take another "
                "--workdir"
            )

    def _refuse_others(self, seen: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name in sorted(wanted.keys() | seen.keys()):
            if name not in wanted or name not in seen or seen[name] != wanted[name]:
                was, now = (json.dumps(side[name]) if name in side else "absent" for side in (seen, wanted))
                raise KdError(
                    f"{self.path} was made with {name} = {was}, now {now}; "
                    f"take another --workdir, or redo this phase with `{self.phase} --force`"
                )


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """blake2b of a file's bytes, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes beside, then renames: the file is whole or not there."""
    with files.atomic_write(path) as file:
        file.write(data)


def write_array(path: Path, array: np.ndarray) -> None:
    """As `write_bytes`, in NumPy's format; files.read_array reads it."""
    with files.atomic_write(path) as file:
        np.save(file, array)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """As `write_array`, several by name: an .npz."""
    written = io.BytesIO()
    np.savez(written, **arrays)
    write_bytes(path, written.getvalue())


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """As `write_text`, for a JSON-able value."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """As `write_text`, one JSON-able row a line."""
    with files.atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_lines(path: Path) -> list[Any]:
    """The inverse of `write_lines`; raises KdError as `read_json`."""
    # Not splitlines: a text may hold U+2028, which JSON leaves as it is.
    return [_parsed(line, path) for line in _text(path).split("\n")[:-1]]


def read_json(path: Path) -> Any:
    """The inverse of `write_json`.

    Raises:
      KdError: if the file is missing or is not JSON, as one that was cut is not.
    """
    return _parsed(_text(path), path)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise KdError(f"{path}: missing; redo the phase that makes it with --force") from error
    except UnicodeDecodeError as error:
        raise KdError(f"{path}: damaged (not UTF-8); redo the phase that makes it with --force") from error


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise KdError(f"{path}: damaged ({error.msg}); redo the phase that makes it with --force") from error
