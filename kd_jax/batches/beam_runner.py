"""Work on one corpus as an Apache Beam pipeline: on the workers of any runner, which see the same files."""

import contextlib
import dataclasses
import pickle
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.artifacts import files, manifest
from kd_jax.batches.workers import Map
from kd_jax.errors import KdError


@dataclasses.dataclass(frozen=True)
class BeamRunner:
    """A runner's workers (`Workers`): kd_jax is installed there, and every path leads to the same file as here.

    Attributes:
      runner: its name, such as "DirectRunner", "DataflowRunner", "FlinkRunner".
      options: the runner's own, as its command line has them, such as "--region=europe-west1 --max_num_workers=50".
      folder: where workers leave what their calls return, until it is read: in the workdir, which all see.
    """

    runner: str
    options: str
    folder: Path

    def check(self) -> None:
        """Raises KdError where Beam is not installed, or knows no such runner."""
        try:
            from apache_beam.runners import runner
        except ImportError as error:
            raise KdError("--beam-runner: Apache Beam is not installed; pip install -e '.[beam]'") from error
        try:
            runner.create_runner(self.runner)
        except (ValueError, ImportError, AttributeError) as error:
            raise KdError(f"--beam-runner {self.runner}: {error}") from error

    @contextlib.contextmanager
    def sharing(self, shared: Any) -> Iterator[Map]:
        """As Workers.sharing; what a function returns is a number or an array.

        Raises:
          KdError: in use, as the function, or if the pipeline fails.
        """
        if self.folder.exists():  # of a pipeline that was stopped
            files.remove_tree(self.folder)
        handed = pickle.dumps(shared)  # to our own workers, who run our code anyway
        try:
            yield lambda function, items: self._each(function, handed, list(items))
        finally:
            if self.folder.exists():
                files.remove_tree(self.folder)

    def _each(self, function: Callable[[Any, Any], Any], handed: bytes, items: Iterable[Any]) -> Iterator[Any]:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        class Call(beam.DoFn):
            def setup(self):
                self.shared = pickle.loads(handed)

            def process(self, numbered):
                leave(folder, function, self.shared, *numbered)

        folder, leave = self.folder, _leave
        options = PipelineOptions(shlex.split(self.options), runner=self.runner)
        try:
            with beam.Pipeline(options=options) as pipeline:
                numbered = pipeline | beam.Create(list(enumerate(items)))
                # Else a runner may take all of them for one worker's.
                _ = numbered | beam.Reshuffle() | beam.ParDo(Call())
        except Exception as error:  # Beam raises whatever its runners raise
            reason = " ".join(str(error).split())[-300:]
            raise KdError(f"--beam-runner {self.runner}: the pipeline failed ({reason})") from error
        for number in range(len(items)):
            yield _left(folder, number)


def _leave(folder: Path, function: Callable[[Any, Any], Any], shared: Any, number: int, item: Any) -> None:
    """Calls it, and leaves what it returned, or its KdError's message."""
    try:
        manifest.write_array(folder / f"{number}.npy", np.asarray(function(shared, item)))
    except KdError as error:
        manifest.write_text(folder / f"{number}.error", str(error))


def _left(folder: Path, number: int) -> Any:
    if (folder / f"{number}.error").exists():
        raise KdError((folder / f"{number}.error").read_text())
    returned = files.read_array(folder / f"{number}.npy")
    return returned if returned.ndim else returned.item()
