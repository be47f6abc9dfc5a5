"""Where a run keeps what: the only file that knows."""

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kd_jax.artifacts import bucket_lock, files
from kd_jax.artifacts.manifest import IMPORT_PHASE, Folder
from kd_jax.errors import KdError

TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A run's folder.

    Attributes:
      path: its root.

    Examples:
      >>> workdir = Workdir(Path("runs/mine"))
      >>> workdir.cache("", "topk").path.as_posix(), workdir.model("student_kd").phase
      ('runs/mine/cache/topk', 'student')
    """

    path: Path

    @property
    def data(self) -> Folder:
        """Tokeniser, encoded splits, held-out text."""
        return Folder(self.path / "data", "prepare")

    def model(self, name: str) -> Folder:
        """The teacher, or the student of that name."""
        if name == TEACHER:
            return Folder(self.path / TEACHER, "teacher")
        return Folder(self.path / "students" / _own(name), "student")

    @property
    def teacher_is_imported(self) -> bool:
        """Whether the teacher is elsewhere: of it there are imported log-probabilities, and no parameters."""
        folder = self.model(TEACHER)
        return folder.finished() and folder.manifest()["phase"] == IMPORT_PHASE

    def hypotheses(self, split: str, beam: int) -> Folder:
        """The teacher's beam of every example of a split."""
        return Folder(self.path / "pseudo" / f"{split}_beam{beam}", "cache")

    def split(self, targets: str) -> Folder:
        """Where the training split with these targets lies; "" for those of the data."""
        return Folder(self.path / "pseudo" / _own(targets), "cache") if targets else self.data

    def cache(self, targets: str, signal: str) -> Folder:
        """What the teacher says about that split."""
        return Folder((self.split(targets).path if targets else self.path) / "cache" / _own(signal), "cache")

    @property
    def validation_cache(self) -> Folder:
        """What the teacher says about the validation split, for closeness without a teacher."""
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
        """An ablation's run with this seed."""
        return Workdir(self.path / f"seed{seed}")

    @property
    def ablation(self) -> Folder:
        """ablation.json, report.md, report.html: what the runs of all seeds say together."""
        return Folder(self.path / "ablation", "ablate")

    @property
    def shrink(self) -> Folder:
        """shrink.json: what students that start as their teacher keep of it."""
        return Folder(self.path / "shrink", "shrink")

    def profile(self, name: str) -> Path:
        """Traces of a model's training steps; nothing reads them here."""
        return self.path / "profile" / _own(name)

    @property
    def metrics(self) -> Path:
        """What --metrics keeps here of every model's training; nothing reads it here."""
        return self.path / "metrics"

    @property
    def config(self) -> Path:
        """The resolved experiment, as data."""
        return self.path / "experiment.json"

    @contextlib.contextmanager
    def lock(self, writer: tuple[int, int] | None = None) -> Iterator[None]:
        """Keeps other processes off this folder until the block ends; a process that died holds nothing.

        Args:
          writer: (this one's number, number of writers) for one of several that share the cache's work: they keep
            each other's number off, and everybody else.

        Raises:
          KdError: if another process works here.
        """
        if files.in_bucket(self.path):
            with bucket_lock.bucket_lock(self.path, writer):
                yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as locks:
            locks.enter_context(self._locked(".kd_jax.lock", fcntl.LOCK_SH if writer else fcntl.LOCK_EX))
            if writer:
                locks.enter_context(self._locked(f".kd_jax.lock.{writer[0]}", fcntl.LOCK_EX))
            yield

    @contextlib.contextmanager
    def _locked(self, name: str, kind: int) -> Iterator[None]:
        with open(self.path / name, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise KdError(
                    f"--workdir {self.path}: another kd_jax works there (process {file.read().strip() or 'unknown'}); "
                    "wait for it, or take another --workdir"
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield


def _own(name: str) -> str:
    """A folder's name; raises KdError for one that leads elsewhere: who wrote the workdir may be a stranger."""
    if Path(name).name != name or name in ("", ".", "..") or "\0" in name:
        raise KdError(f"{name!r}: a name that leads out of its folder; wanted one without slashes, and not '..'")
    return name
