"""What a phase leaves beside its output: what made it, what it consumed, and its digest."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kd_jax.errors import KdError

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "sentencepiece")


def start(folder: Path, phase: str, inputs: Mapping[str, Any], force: bool = False) -> bool:
    """Opens `folder` for a phase with these inputs; true if there is work to do.

    Finished with the same inputs: false. Begun with the same inputs: true, and what is there may be
    gone on from. `force` empties the folder first.

    Args:
      folder: the phase's output folder, made if needed.
      phase: the phase's name, for messages.
      inputs: flat: configuration fields and the digests of what is consumed; JSON-able.
      force: whether to redo the phase from nothing.

    Raises:
      KdError: if the folder was begun or finished with other inputs; names the first that differs.
    """
    if force and folder.exists():
        shutil.rmtree(folder)
    begun = folder / "inputs.json"
    wanted = json.loads(json.dumps(dict(inputs)))
    if begun.exists() and len(list(folder.iterdir())) > 1:  # else it was begun, but nothing came of it
        seen = json.loads(begun.read_text())
        for name in sorted(wanted.keys() | seen.keys()):
            if name not in wanted or name not in seen or seen[name] != wanted[name]:
                was, now = (json.dumps(side[name]) if name in side else "absent" for side in (seen, wanted))
                raise KdError(
                    f"{folder} was made with {name} = {was}, now {now}; "
                    f"take another --workdir, or redo this phase with `{phase} --force`"
                )
    else:
        write_json(begun, wanted)
    return not (folder / "manifest.json").exists()


def finish(folder: Path, phase: str, outputs: Mapping[str, Any], seconds: float) -> None:
    """Marks the phase as done; the manifest is the last file that it writes."""
    write_json(
        folder / "manifest.json",
        {
            "phase": phase,
            "inputs": json.loads((folder / "inputs.json").read_text()),
            "outputs": dict(outputs),
            "seconds": seconds,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
            | {"python": platform.python_version()},
        },
    )


def read(folder: Path, phase: str) -> dict[str, Any]:
    """The manifest of a finished phase.

    Raises:
      KdError: if it is not finished; says which phase to run.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise KdError(f"{folder}: not finished (no manifest.json); run the phase `{phase}` first")
    return json.loads(path.read_text())


def file_digest(path: Path) -> str:
    """blake2b of a file's bytes, 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes beside, then renames: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    """As `write_text`, for a JSON-able value."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """As `write_text`, one JSON-able row a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[Any]:
    """The inverse of `write_lines`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_json(path: Path) -> Any:
    """The inverse of `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))
