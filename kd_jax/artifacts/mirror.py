"""Checkpoints in s3://, which orbax does not know: written on this machine's disk and uploaded whole."""

import itertools
import shutil
import tempfile
from pathlib import Path

from kd_jax.artifacts import files

MARKER = "uploaded.txt"  # the last file of each checkpoint to be uploaded, and the first to be deleted
FOLDERS = ("checkpoints", "damaged_checkpoints")
PARAMS_PARTS = ("_CHECKPOINT_METADATA", "metrics", "params")  # that orbax needs to read a checkpoint's parameters

FileStates = list[tuple[str, int, int]]  # (path, size, modification time) of each file


class Mirror:
    """A copy of a model's checkpoints in a bucket, in `folder` on this machine's disk; deleted with the process."""

    def __init__(self, remote: Path, step: int | None = None):
        """Download the complete checkpoints, and delete the incomplete ones in the bucket.

        With `step`, download the parameters of this checkpoint alone, and delete nothing.
        """
        self._remote, self._scratch = remote, tempfile.TemporaryDirectory(prefix="kd_jax_")
        self.folder = Path(self._scratch.name)
        self._uploaded: dict[Path, FileStates] = {}
        for name in FOLDERS:
            (self.folder / name).mkdir()
        if step is not None:
            self._download(remote / FOLDERS[0] / str(step), PARAMS_PARTS)
            return
        for checkpoint in itertools.chain(*(_folders(remote / name) for name in FOLDERS)):
            if (checkpoint / MARKER).exists():
                self._download(checkpoint)
            else:
                files.remove_tree(checkpoint)

    def push(self) -> None:
        """Upload new checkpoints, and delete in the bucket those that are gone on the disk."""
        local = {path.relative_to(self.folder): path for name in FOLDERS for path in _folders(self.folder / name)}
        states = {name: _file_states(path) for name, path in local.items()}
        changed = [name for name, state in states.items() if self._uploaded.get(name) != state]
        for name in [name for name in self._uploaded if name not in states or name in changed]:
            (self._remote / name / MARKER).unlink(missing_ok=True)
            files.remove_tree(self._remote / name)
            del self._uploaded[name]
        for name in changed:
            for path in files.list_files(local[name]):
                files.upload(path, self.remote_path(path))
            (self._remote / name / MARKER).write_text("")
            self._uploaded[name] = states[name]

    def remote_path(self, path: Path) -> Path:
        """Return the path in the bucket of a path on the disk."""
        return self._remote / path.relative_to(self.folder)

    def close(self) -> None:
        """Delete the copy on the disk."""
        self._scratch.cleanup()

    def _download(self, checkpoint: Path, parts: tuple[str, ...] = ()) -> None:
        """Download a checkpoint, or the named parts of it."""
        target = self.folder / checkpoint.relative_to(self._remote)
        for path in files.list_files(checkpoint):
            name = path.relative_to(checkpoint)
            if name.name != MARKER and (not parts or name.parts[0] in parts):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                with path.open("rb") as source, open(target / name, "wb") as file:
                    shutil.copyfileobj(source, file, 2**24)
        self._uploaded[target.relative_to(self.folder)] = _file_states(target)


def _folders(path: Path) -> list[Path]:
    return [child for child in path.iterdir() if child.is_dir()] if path.exists() else []


def _file_states(folder: Path) -> FileStates:
    """Return states that differ once any file of a folder is written anew."""
    stats = {path: path.stat() for path in files.list_files(folder)}
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()]
