"""Orbax checkpoints: the best and the latest ones of a training, and the parameters that other phases read."""

import contextlib
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from kd_jax.artifacts import files
from kd_jax.artifacts.digests import checksums, params_digest
from kd_jax.artifacts.manifest import IMPORT_PHASE, Folder
from kd_jax.artifacts.mirror import Mirror
from kd_jax.errors import KdError
from kd_jax.runtime import hosts
from kd_jax.types import Array, Params

METRIC = "valid_cross_entropy"
SELECTION = "selection"  # in a checkpoint's metrics: the lower, the better
LATEST = 2  # checkpoints kept beside the best: the latest, and an older one if the latest is damaged
OTHER_BYTES = 2**20  # of a checkpoint beside its arrays


class State(Protocol):
    """The fields of training.step.TrainState, which a checkpoint has."""

    @property
    def step(self) -> Array: ...  # noqa: D102

    @property
    def key(self) -> Array: ...  # noqa: D102

    @property
    def params(self) -> Params: ...  # noqa: D102

    @property
    def adapters(self) -> Mapping[str, Params]: ...  # noqa: D102

    @property
    def opt_state(self) -> Any: ...  # noqa: D102

    def _replace(self, **fields: Any) -> Self: ...


StateT = TypeVar("StateT", bound=State)


class DamagedCheckpoint(Exception):
    """A checkpoint that differs from what was saved; the message names it."""


class Checkpoints:
    """The checkpoints of one run, in folder/checkpoints; orbax commits each by rename, in gs:// by a marker."""

    def __init__(self, folder: Path, step: int | None = None):
        """Open the checkpoints of a model's folder; with `step`, fetch its parameters alone from s3://.

        Raises:
          DamagedCheckpoint: if a step's metrics cannot be read; see `quarantine_unreadable`.
        """
        policy = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(n=LATEST), checkpoint_managers.BestN(get_metric_fn=_metric, reverse=True, n=1)]
        )
        logging.getLogger("absl").addFilter(_is_not_from_orbax)
        self._mirror = Mirror(folder, step) if files.in_s3(folder) else None
        self._folder = files.absolute((self._mirror.folder if self._mirror else folder) / "checkpoints")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, best_fn=_metric, best_mode="min", cleanup_tmp_directories=True
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except ValueError as error:  # it reads every step's metrics, JSON
            raise DamagedCheckpoint(f"{self._folder}: {error}") from error

    def __enter__(self) -> Self:
        """Return the open checkpoints."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until everything is saved, and close the checkpoints."""
        self._manager.close()
        if self._mirror:
            self._mirror.close()

    def latest_step(self) -> int | None:
        """Return the newest checkpoint's step."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Return the step with the lowest selection value; of equal ones the latest."""
        return self._manager.best_step()

    def param_files(self, step: int) -> dict[str, int]:
        """Return the size in bytes of each file of a checkpoint's parameters, by its path below checkpoints/."""
        paths = files.list_files(self._folder / str(step) / "params")
        return {path.relative_to(self._folder).as_posix(): files.file_size(path) for path in paths}

    def save(self, state: State, iterator: dict[str, Any], selection: float | None) -> None:
        """Save a training state under its step, in place of an earlier checkpoint of that step.

        Orbax writes in the background; an upload to s3:// is finished before this returns.
        The step with the lowest `selection` is the best; a step with None is never.
        """
        needed = OTHER_BYTES + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = files.free_bytes(self._folder)
        if free is not None and free < needed:
            raise KdError(
                f"{self._folder}: expected {needed >> 20} MiB of free space for a checkpoint, got {free >> 20} MiB. "
                "Free some and run the same command again."
            )
        step = int(jax.device_get(state.step))
        rest = _rest(state)
        metadata = {"iterator": iterator, "checksums": _to_ints(checksums((state.params, rest)))}
        metadata["digest"] = _digest(metadata)
        if step in self._manager.all_steps():
            self._manager.delete(step)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(rest),
            beside=ocp.args.JsonSave(metadata),
        )
        metrics = {SELECTION: math.inf if selection is None else selection}
        self._manager.save(step, args=items, metrics=metrics)
        if self._mirror:
            self.wait()

    def quarantine(self, step: int) -> Path:
        """Move a damaged checkpoint aside and return its new path; the machine may be at fault, not the files."""
        path = hosts.run_on_main(lambda: str(_quarantine(self._folder / str(step))))
        self._manager.reload()
        self.wait()
        return self._mirror.remote_path(Path(path)) if self._mirror else files.as_path(path)

    def wait(self) -> None:
        """Wait until everything is saved on the disk or in the bucket."""
        self._manager.wait_until_finished()
        if self._mirror:
            self._mirror.push()

    def restore(self, like: StateT) -> tuple[StateT, dict[str, Any]]:
        """Return the newest state, in the shapes, dtypes and shardings of `like`, and the iterator's state.

        Raises:
          DamagedCheckpoint: if the checkpoint cannot be read, or differs from what was saved.
        """
        items = ocp.args.Composite(
            params=_restore_args(like.params),
            rest=_restore_args(_rest(like)),
            beside=ocp.args.JsonRestore(),
        )
        step = self.latest_step()
        restored = self._restore(step, items)
        params, rest, metadata = restored["params"], restored["rest"], restored["beside"]
        self._check(step, (params, rest), metadata)
        return like._replace(params=params, **rest), metadata["iterator"]

    def best_params(self, like: Params) -> Params:
        """Return the parameters of the best step, as numpy arrays."""
        with _force_as_remedy():
            return self.checked_params(self.best_step(), like)

    def checked_params(self, step: int | None, like: Params) -> Params:
        """Return the parameters at a step, as numpy arrays.

        Raises:
          DamagedCheckpoint: if they cannot be read, or differ from what was saved.
        """
        items = ocp.args.Composite(params=_restore_whole_args(like), beside=ocp.args.JsonRestore())
        restored = self._restore(step, items)
        self._check(step, restored["params"], restored["beside"])
        return restored["params"]

    def params(self, step: int, like: Params) -> Params:
        """Return the parameters at a step, also of a checkpoint of an older kd_jax."""
        items = ocp.args.Composite(params=_restore_whole_args(like))
        return jax.tree.map(jnp.asarray, self._restore(step, items)["params"])

    def _check(self, step: int | None, tree: Any, metadata: dict[str, Any]) -> None:
        """Raise DamagedCheckpoint unless a tree, the first leaves of those saved, has the saved checksums."""
        sums, digest = _to_ints(checksums(tree)), metadata.pop("digest", None)
        if digest != _digest(metadata) or metadata["checksums"][: len(sums)] != sums:
            raise DamagedCheckpoint(f"checkpoint {self._shown_path(step)}: its values are not the saved ones")

    def _restore(self, step: int | None, items: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=items)
        except Exception as error:  # orbax raises the errors of all its parts, a plain Exception among them
            reason = " ".join(str(error).split())[:200]
            raise DamagedCheckpoint(f"checkpoint {self._shown_path(step)} cannot be read ({reason})") from error

    def _shown_path(self, step: int | None) -> Path:
        path = self._folder / str(step)
        return self._mirror.remote_path(path) if self._mirror else path


def quarantine_unreadable(folder: Path) -> list[Path]:
    """Move checkpoints with damaged metrics aside, since orbax opens none beside them; return their new paths."""
    quarantined = []
    for path in sorted((folder / "checkpoints").glob("*/metrics/metrics")):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            quarantined.append(_quarantine(path.parents[1]))
    return quarantined


def _quarantine(path: Path) -> Path:
    """Move checkpoints/STEP to damaged_checkpoints/STEP, or to STEP.1, STEP.2, ... after an earlier one."""
    folder = path.parent.with_name("damaged_checkpoints")
    folder.mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{n}" for n in itertools.count(1)))
    return path.rename(next(folder / name for name in names if not (folder / name).exists()))


def load_params(folder: Folder, init: Callable[[Array], Params]) -> Params:
    """Return the best parameters of a finished model, checked against its manifest."""
    manifest, path = folder.manifest(), folder.path
    if manifest["phase"] == IMPORT_PHASE:
        raise KdError(
            f"{path}: expected a trained model, got log-probabilities that `{IMPORT_PHASE}` has read (the teacher is "
            "elsewhere). Choose a student, or train the teacher in another --workdir."
        )
    outputs = manifest["outputs"]
    shapes = jax.eval_shape(init, jax.random.key(0))
    dtype = outputs.get("dtype", "float32")  # older versions knew no other
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
    with _force_as_remedy(), Checkpoints(path, outputs["best_step"]) as checkpoints:
        sizes = checkpoints.param_files(outputs["best_step"])
        for name, size in outputs["files"].items():
            if sizes.get(name) != size:
                got = f"{sizes[name]} bytes" if name in sizes else "no file"
                raise KdError(
                    f"{path}/checkpoints/{name}: expected {size} bytes, got {got}. Run `{folder.phase} --force` again."
                )
        params = checkpoints.params(outputs["best_step"], like)
    if params_digest(params) != outputs["digest"]:
        raise KdError(f"{path}: expected the saved parameters, got others. Run `{folder.phase} --force` again.")
    return params


def _rest(state: State) -> dict[str, Any]:
    """Return all fields but the parameters; orbax saves no empty trees, so adapters only if there are any."""
    rest = {"step": state.step, "key": state.key, "opt_state": state.opt_state}
    return rest | ({"adapters": state.adapters} if state.adapters else {})


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    """Return whether a log record is not orbax's: it raises its failures too, and logs long tracebacks."""
    return "orbax" not in record.pathname


@contextlib.contextmanager
def _force_as_remedy() -> Iterator[None]:
    try:
        yield
    except DamagedCheckpoint as error:
        raise KdError(f"{error}. Run the phase with --force again.") from error


def _restore_args(like: Any) -> ocp.args.StandardRestore:
    return ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))


def _restore_whole_args(like: Any) -> ocp.args.StandardRestore:
    """Restore whole numpy arrays on each host: the arrays may have been sharded over devices that are not here."""
    return ocp.args.StandardRestore(jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like))


def _digest(metadata: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16).hexdigest()


def _to_ints(scalars: list[Array]) -> list[int]:
    return [int(scalar) for scalar in jax.device_get(scalars)]


def _metric(metrics: dict[str, float]) -> float:
    return metrics[SELECTION] if SELECTION in metrics else metrics[METRIC]  # of an older version
