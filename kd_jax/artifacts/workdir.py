"""The layout of a run's folder; only this module knows it."""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from kd_jax.artifacts import files
from kd_jax.artifacts.bucket_lock import bucket_lock, workdir_in_use
from kd_jax.artifacts.manifest import IMPORT_PHASE, Folder
from kd_jax.errors import KdError

TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A run's folder.

    Attributes:
      path: its root, on a disk or in a bucket (see `files.as_path`).

    Examples:
      >>> workdir = Workdir(Path("runs/mine"))
      >>> workdir.cache("", "topk").path.as_posix(), workdir.model("student_kd").phase
      ('runs/mine/cache/topk', 'student')
    """

    path: Path

    def __post_init__(self) -> None:
        """Refuse pathlib.Path("gs://..."), which would be a local folder "gs:"."""
        files.in_bucket(self.path)

    @property
    def data(self) -> Folder:
        """Tokeniser, encoded splits, held-out text."""
        return Folder(self.path / "data", "prepare")

    def model(self, name: str) -> Folder:
        """Return the folder of the teacher, or of a student."""
        if name == TEACHER:
            return Folder(self.path / TEACHER, "teacher")
        return Folder(self.path / "students" / _folder_name(name), "student")

    def round(self, name: str, number: int) -> Folder:
        """Return the folder of the texts that a student writes for a round of its training."""
        return Folder(self.model(name).path / "rounds" / str(number), "student", name)

    def round_cache(self, name: str, number: int, signal: str) -> Folder:
        """Return the folder of the teacher's signal for these texts."""
        return Folder(self.round(name, number).path / "cache" / _folder_name(signal), "student", name)

    @property
    def teacher_is_imported(self) -> bool:
        """Whether the run has imported log-probabilities of its teacher, and no parameters."""
        folder = self.model(TEACHER)
        return folder.finished() and folder.manifest()["phase"] == IMPORT_PHASE

    def hypotheses(self, split: str, beam: int) -> Folder:
        """Return the folder of the teacher's beam for every example of a split."""
        return Folder(self.path / "pseudo" / _folder_name(f"{split}_beam{beam}"), "cache")

    def split(self, targets: str) -> Folder:
        """Return the folder of the training split with these pseudo-targets; "" for the data's targets."""
        return Folder(self.path / "pseudo" / _folder_name(targets), "cache") if targets else self.data

    def cache(self, targets: str, signal: str) -> Folder:
        """Return the folder of the teacher's signal for that split."""
        return Folder((self.split(targets).path if targets else self.path) / "cache" / _folder_name(signal), "cache")

    @property
    def validation_cache(self) -> Folder:
        """The teacher's signal for the validation split, for closeness without a teacher."""
        return Folder(self.path / "cache" / "validation_topk", "cache")

    @property
    def evaluation(self) -> Folder:
        """Each model's figures and texts."""
        return Folder(self.path / "evaluation", "evaluate")

    @property
    def report(self) -> Folder:
        """report.json, report.md, report.html."""
        return Folder(self.path / "report", "report")

    def seed(self, seed: int) -> "Workdir":
        """Return the workdir of an ablation's run with this seed."""
        return Workdir(self.path / f"seed{seed}")

    @property
    def ablation(self) -> Folder:
        """ablation.json, report.md and report.html over the runs of all seeds."""
        return Folder(self.path / "ablation", "ablate")

    @property
    def shrink(self) -> Folder:
        """The quality of students that start from their teacher, before training, in shrink.json."""
        return Folder(self.path / "shrink", "shrink")

    def profile(self, name: str) -> Path:
        """Return the folder for traces of a model's training steps."""
        return self.path / "profile" / _folder_name(name)

    @property
    def metrics(self) -> Path:
        """Files of --metrics for every model's training."""
        return self.path / "metrics"

    @property
    def config(self) -> Path:
        """The resolved experiment, as JSON."""
        return self.path / "experiment.json"

    @contextlib.contextmanager
    def lock(self, writer: tuple[int, int] | None = None) -> Iterator[None]:
        """Keep other processes out of this folder for the block; the lock of a dead process is free.

        Args:
          writer: (index, count) of one of several processes that share the cache's work. They exclude all others, and
            each one another process of its index.

        Raises:
          KdError: if another process works here.
        """
        if files.in_bucket(self.path):
            with bucket_lock(self.path, writer):
                yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as locks:
            locks.enter_context(self._file_lock(".kd_jax.lock", fcntl.LOCK_SH if writer else fcntl.LOCK_EX))
            if writer:
                locks.enter_context(self._file_lock(f".kd_jax.lock.{writer[0]}", fcntl.LOCK_EX))
            yield

    @contextlib.contextmanager
    def _file_lock(self, name: str, kind: int) -> Iterator[None]:
        with open(self.path / name, "a+", encoding="utf-8", opener=files.open_unlinked) as file:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise workdir_in_use(self.path, file.read()) from error
            file.truncate(0)
            file.write(json.dumps({"process": os.getpid(), "machine": socket.gethostname()}))
            file.flush()
            yield


def _folder_name(name: str) -> str:
    """Return a name that is one folder's; raise KdError otherwise, since a stranger may have written the workdir."""
    if Path(name).name != name or name in ("", ".", "..") or "\0" in name:
        raise KdError(f"name: expected a folder's name without slashes, got {name!r}. Rename it in the experiment.")
    return name
