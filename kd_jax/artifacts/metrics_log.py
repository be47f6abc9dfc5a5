"""What each step measured, as JSON lines: the record that a run goes on from and that its report reads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kd_jax.artifacts import files
from kd_jax.errors import KdError
from kd_jax.runtime import hosts


class MetricWriter(Protocol):
    """Another place that every row goes to, such as TensorBoard (see `writers`)."""

    def begin(self, anew: bool) -> None:
        """A training begins, `anew` or from a checkpoint: rows may come that came before."""
        ...

    def write(self, row: Mapping[str, float]) -> None:
        """One row, with its `step`."""
        ...

    def close(self) -> None:
        """No more rows come."""
        ...


class MetricsLog:
    """Metrics as JSON lines, one row per `append`; each row has its `step`. Of several hosts the first writes them."""

    def __init__(self, path: Path, writers: Sequence[MetricWriter] = ()):
        """Args: path: of the file; writers: what else is given the rows, from `truncate_after` on."""
        self._path, self._writers = path, writers

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row and hands it to the system at once."""
        if not hosts.is_main_process():
            return
        files.append_text(self._path, json.dumps(row) + "\n")
        for writer in self._writers:
            writer.write(row)

    def close(self) -> None:
        """Closes the other writers."""
        for writer in self._writers:
            writer.close()

    def contains(self, step: int, name: str) -> bool:
        """Whether a row of this step says `name`."""
        return hosts.run_on_main(
            lambda: self._path.exists() and any(row["step"] == step and name in row for row in read(self._path))
        )

    def truncate_after(self, step: int) -> None:
        """Drops rows of later steps, and a last row that a kill cut short: a run goes on from `step`, or begins at -1.

        Raises:
          KdError: if another row is damaged; names the file and the line.
        """
        if not hosts.is_main_process():
            return
        for writer in self._writers:
            writer.begin(anew=step < 0)
        if not self._path.exists():
            return
        whole = self._path.read_bytes().rpartition(b"\n")[0]
        rows = [row for row in _rows(self._path, whole) if row["step"] <= step]
        with files.atomic_write(self._path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a MetricsLog.

    Raises:
      KdError: if the file is missing or a row is damaged; names the file and the line.
    """
    if not path.exists():
        raise KdError(f"{path}: missing; wanted the training log beside the model: train it again with --force")
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
            f"{path}: line {number} is {line[:60].decode(errors='replace')!r}; wanted a JSON object with its step: "
            "put the file back as it was, or train again with --force"
        )
    return row
