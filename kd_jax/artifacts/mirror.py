"""Checkpoints in a bucket that orbax does not know (s3://): made on this machine's disk, and uploaded once whole."""

import itertools
import shutil
import tempfile
from pathlib import Path

from kd_jax.artifacts import files

WHOLE = "uploaded.txt"  # of each checkpoint the last file to come, and the first to go
FOLDERS = ("checkpoints", "damaged_checkpoints")
READ = ("_CHECKPOINT_METADATA", "metrics", "params")  # what orbax wants of a checkpoint whose parameters are read

State = list[tuple[str, int, int]]


class Mirror:
    """A model's checkpoints on this machine's disk, as they are in a bucket.

    Attributes:
      folder: on the disk, in the place of the model's; it goes with the process.
    """

    def __init__(self, where: Path, step: int | None = None):
        """Downloads what is whole in the model's folder `where`, and deletes there what is not.

        With a step it downloads the parameters of that checkpoint alone, to be read, and deletes nothing.
        """
        self._there, self._scratch = where, tempfile.TemporaryDirectory(prefix="kd_jax_")
        self.folder, self._known = Path(self._scratch.name), {}
        for name in FOLDERS:
            (self.folder / name).mkdir()
        if step is not None:
            self._download(where / FOLDERS[0] / str(step), READ)
            return
        for checkpoint in itertools.chain(*(_folders(where / name) for name in FOLDERS)):
            if (checkpoint / WHOLE).exists():
                self._download(checkpoint)
            else:
                checkpoint.rmtree()

    def push(self) -> None:
        """Uploads what is new on the disk, and deletes in the bucket what is no more on it."""
        here = {path.relative_to(self.folder): path for name in FOLDERS for path in _folders(self.folder / name)}
        states = {name: _state(path) for name, path in here.items()}
        changed = [name for name, state in states.items() if self._known.get(name) != state]
        for name in [name for name in self._known if name not in states or name in changed]:
            (self._there / name / WHOLE).unlink(missing_ok=True)
            (self._there / name).rmtree()
            del self._known[name]
        for name in changed:
            for path in files.list_files(here[name]):
                files.upload(path, self.there(path))
            (self._there / name / WHOLE).write_text("")
            self._known[name] = states[name]

    def there(self, path: Path) -> Path:
        """Where in the bucket lies what is at this path of the disk."""
        return self._there / path.relative_to(self.folder)

    def close(self) -> None:
        """Deletes what is on the disk."""
        self._scratch.cleanup()

    def _download(self, checkpoint: Path, parts: tuple[str, ...] = ()) -> None:
        """All of a checkpoint, or those of its parts that are named."""
        target = self.folder / checkpoint.relative_to(self._there)
        for path in files.list_files(checkpoint):
            name = path.relative_to(checkpoint)
            if name.name != WHOLE and (not parts or name.parts[0] in parts):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                with path.open("rb") as source, open(target / name, "wb") as file:
                    shutil.copyfileobj(source, file, 2**24)
        self._known[target.relative_to(self.folder)] = _state(target)


def _folders(where: Path) -> list[Path]:
    return [path for path in where.iterdir() if path.is_dir()] if where.exists() else []


def _state(folder: Path) -> State:
    """What shows that any file of a folder was written anew."""
    stats = {path: path.stat() for path in files.list_files(folder)}
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()]
