"""Map a function over items as an Apache Beam pipeline, on any runner whose workers see the same files."""

import contextlib
import dataclasses
import pickle
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.artifacts import files, manifest
from kd_jax.batches.workers import ParallelMap
from kd_jax.errors import KdError


@dataclasses.dataclass(frozen=True)
class BeamRunner:
    """The workers of a Beam runner (`Workers`).

    kd_jax is installed on the workers, and every path leads to the same file as on this machine.

    Attributes:
      runner: its name, for example "DirectRunner", "DataflowRunner" or "FlinkRunner".
      options: the runner's command line, for example "--region=europe-west1 --max_num_workers=50".
      folder: where workers write their results until they are read; in the workdir, which all workers see.
    """

    runner: str
    options: str
    folder: Path

    def check(self) -> None:
        """Check that Beam is installed and knows the runner."""
        try:
            from apache_beam.runners import runner  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError as error:
            raise KdError("--beam-runner: expected Apache Beam, got none. Run `pip install -e '.[beam]'`.") from error
        try:
            runner.create_runner(self.runner)
        except (ValueError, ImportError, AttributeError) as error:
            raise KdError(f"--beam-runner {self.runner}: {error}") from error

    @contextlib.contextmanager
    def start(self, shared: Any) -> Iterator[ParallelMap]:
        """Prepare the pipelines, as `Workers.start`; a function returns a number or an array."""
        if self.folder.exists():  # of a pipeline that was stopped
            files.remove_tree(self.folder)
        pickled = pickle.dumps(shared)  # trusted: only our own workers load it
        try:
            yield lambda function, items: self._map(function, pickled, list(items))
        finally:
            if self.folder.exists():
                files.remove_tree(self.folder)

    def _map(self, function: Callable[[Any, Any], Any], pickled: bytes, items: list[Any]) -> Iterator[Any]:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]  # an extra
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]

        class Call(beam.DoFn):
            def setup(self):
                self.shared = pickle.loads(pickled)

            def process(self, numbered_item):
                number, item = numbered_item
                write_result(folder, function, self.shared, number, item)

        # Beam pickles the closure of Call: it must hold neither self nor a module.
        folder, write_result = self.folder, _write_result
        options = PipelineOptions(shlex.split(self.options), runner=self.runner)
        try:
            with beam.Pipeline(options=options) as pipeline:
                numbered_items = pipeline | beam.Create(list(enumerate(items)))
                # Without a reshuffle a runner may send all items to one worker.
                _ = numbered_items | beam.Reshuffle() | beam.ParDo(Call())
        except Exception as error:  # Beam raises whatever its runners raise
            reason = " ".join(str(error).split())[-300:]
            raise KdError(
                f"--beam-runner {self.runner}: expected the pipeline to finish, got an error ({reason}). Correct "
                "--beam-options or the runner, and run the same command again."
            ) from error
        for number in range(len(items)):
            error_path = folder / f"{number}.error"
            if error_path.exists():
                raise KdError(error_path.read_text())
            result = files.read_array(folder / f"{number}.npy")
            yield result if result.ndim else result.item()


def _write_result(folder: Path, function: Callable[[Any, Any], Any], shared: Any, number: int, item: Any) -> None:
    """Call the function; write its result, or its KdError's message."""
    try:
        manifest.write_array(folder / f"{number}.npy", np.asarray(function(shared, item)))
    except KdError as error:
        manifest.write_text(folder / f"{number}.error", str(error))
