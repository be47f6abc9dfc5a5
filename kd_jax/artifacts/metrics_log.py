"""The metrics of a training as JSON lines, from which it resumes and its report is made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kd_jax.artifacts import files
from kd_jax.errors import KdError
from kd_jax.runtime import hosts


class MetricWriter(Protocol):
    """Another destination of every row, for example TensorBoard (see `metric_writers`)."""

    def begin(self, fresh: bool) -> None:
        """Start, for a fresh training or a resumed one, which repeats rows."""
        ...

    def write(self, row: Mapping[str, float]) -> None:
        """Write a row, with its `step`."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class MetricsLog:
    """Metrics as JSON lines, one row per `append`, each with its `step`; only the main process writes them."""

    def __init__(self, path: Path, writers: Sequence[MetricWriter] = ()):
        """Make a log; nothing is opened yet, and `writers` get its rows from `truncate_after` on."""
        self._path, self._writers = path, writers

    def append(self, row: dict[str, Any]) -> None:
        """Append a row."""
        if not hosts.is_main_process():
            return
        files.append_text(self._path, json.dumps(row) + "\n")
        for writer in self._writers:
            writer.write(row)

    def close(self) -> None:
        """Close the other writers."""
        for writer in self._writers:
            writer.close()

    def contains(self, step: int, name: str) -> bool:
        """Return whether a row of this step has the metric `name`."""
        return hosts.run_on_main(
            lambda: self._path.exists() and any(row["step"] == step and name in row for row in read(self._path))
        )

    def truncate_after(self, step: int) -> None:
        """Drop the rows after `step` (-1 for a fresh training), and a last row that is cut short."""
        if not hosts.is_main_process():
            return
        for writer in self._writers:
            writer.begin(fresh=step < 0)
        if not self._path.exists():
            return
        whole_lines = self._path.read_bytes().rpartition(b"\n")[0]
        rows = [row for row in _rows(self._path, whole_lines) if row["step"] <= step]
        with files.atomic_write(self._path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a MetricsLog."""
    if not path.exists():
        raise KdError(f"{path}: expected the training's log, missing. Train the model again with --force.")
    return _rows(path, path.read_bytes().removesuffix(b"\n"))


def _rows(path: Path, data: bytes) -> list[dict[str, Any]]:
    return [_row(path, number, line) for number, line in enumerate(data.split(b"\n"), 1)] if data else []


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise KdError(
            f"{path}: expected a JSON object with a step in line {number}, got "
            f"{line[:60].decode(errors='replace')!r}. Restore the file, or train again with --force."
        )
    return row
