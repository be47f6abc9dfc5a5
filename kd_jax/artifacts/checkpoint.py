"""Orbax checkpoints: the best and the last ones of a training run, and parameters that link the phases."""

import contextlib
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from kd_jax.types import Params

METRIC = "valid_cross_entropy"
LATEST = 2  # checkpoints that stay beside the best: the last, and the one to fall back on
SPARE = 2**20  # bytes that a checkpoint takes beside its arrays


class DamagedCheckpoint(Exception):
    """A checkpoint that is not as it was saved; names it."""


class Checkpoints:
    """The checkpoints of one run, under folder/checkpoints; orbax commits each by rename, in gs:// by a marker."""

    def __init__(self, folder: Path, step: int | None = None):
        """Raises DamagedCheckpoint if a step's metrics cannot be read; see `quarantine_unreadable`.

        With a `step` that step's parameters are read alone, and nothing else need be fetched from s3://.
        """
        keep = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(n=LATEST), checkpoint_managers.BestN(get_metric_fn=_metric, reverse=True, n=1)]
        )
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._mirror = Mirror(folder, step) if files.in_s3(folder) else None
        self._folder = files.absolute((self._mirror.folder if self._mirror else folder) / "checkpoints")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep, best_fn=_metric, best_mode="min", cleanup_tmp_directories=True
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except ValueError as error:  # it reads every step's metrics, JSON
            raise DamagedCheckpoint(f"{self._folder}: {error}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()
        if self._mirror:
            self._mirror.close()

    def latest_step(self) -> int | None:
        """The newest checkpoint's step."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the lowest validation cross-entropy."""
        return self._manager.best_step()

    def param_files(self, step: int) -> dict[str, int]:
        """Size in bytes of every file of a checkpoint's parameters, by its path below checkpoints/."""
        paths = files.list_files(self._folder / str(step) / "params")
        return {path.relative_to(self._folder).as_posix(): files.file_size(path) for path in paths}

    def save(self, state: Any, iterator: dict[str, Any], valid_cross_entropy: float | None) -> None:
        """Saves a training.step.TrainState with its step's number, in the place of one that is there already.

        Writing goes on in the background, but to s3:// before training goes on. What was not measured (None) is never
        the best.

        Raises:
          KdError: if the disk has no room for it.
        """
        needed = SPARE + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = files.free_bytes(self._folder)
        if free is not None and free < needed:
            raise KdError(
                f"no space left for a checkpoint in {self._folder}: {free >> 20} MiB free, {needed >> 20} MiB wanted; "
                "free some and run the same command again"
            )
        step = int(jax.device_get(state.step))
        rest = _rest(state)
        beside = {"iterator": iterator, "checksums": _numbers(checksums((state.params, rest)))}
        beside["digest"] = _digest(beside)
        items = {
            "params": ocp.args.StandardSave(state.params),
            "rest": ocp.args.StandardSave(rest),
            "beside": ocp.args.JsonSave(beside),
        }
        if step in self._manager.all_steps():
            self._manager.delete(step)
        metrics = {METRIC: math.inf if valid_cross_entropy is None else valid_cross_entropy}
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        if self._mirror:
            self.wait()

    def quarantine(self, step: int) -> Path:
        """Moves a checkpoint that cannot be read away, and says where to: it may be the machine that erred."""
        aside = hosts.run_on_main(lambda: str(_quarantine(self._folder / str(step))))
        self._manager.reload()
        self.wait()
        return self._mirror.there(Path(aside)) if self._mirror else files.as_path(aside)

    def wait(self) -> None:
        """Until all that was saved is on disk, or in its bucket."""
        self._manager.wait_until_finished()
        if self._mirror:
            self._mirror.push()

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The newest state, in the shape of `like`, and the iterator's state.

        Raises:
          DamagedCheckpoint: if it cannot be read, or is not what was saved.
        """
        items = {
            "params": _restore_args(like.params),
            "rest": _restore_args(_rest(like)),
            "beside": ocp.args.JsonRestore(),
        }
        restored = self._restored(self.latest_step(), items)
        params, rest, beside = restored["params"], restored["rest"], restored["beside"]
        self._check(self.latest_step(), (params, rest), beside)
        return like._replace(params=params, **rest), beside["iterator"]

    def best_params(self, like: Params) -> Params:
        """The parameters of the best step, as numpy arrays.

        Raises:
          KdError: if the checkpoint cannot be read, or is not what was saved.
        """
        items = {"params": _restore_whole(like), "beside": ocp.args.JsonRestore()}
        with _or_redo():
            restored = self._restored(self.best_step(), items)
            self._check(self.best_step(), restored["params"], restored["beside"])
        return restored["params"]

    def params(self, step: int, like: Params) -> Params:
        """The parameters at `step`, of whatever version of kd_jax.

        Raises:
          DamagedCheckpoint: if the checkpoint cannot be read.
        """
        return jax.tree.map(jnp.asarray, self._restored(step, {"params": _restore_whole(like)})["params"])

    def _check(self, step: int, read: Any, beside: dict[str, Any]) -> None:
        """Raises DamagedCheckpoint unless what was read (the first leaves of what was saved) has the checksums of then."""
        sums, digest = _numbers(checksums(read)), beside.pop("digest", None)
        if digest != _digest(beside) or beside["checksums"][: len(sums)] != sums:
            raise DamagedCheckpoint(f"checkpoint {self._shown(step)}: its values are not those that were saved")

    def _restored(self, step: int, items: dict[str, Any]) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax raises whatever its parts raise, a plain Exception among them
            reason = " ".join(str(error).split())[:200]
            raise DamagedCheckpoint(f"checkpoint {self._shown(step)} cannot be read ({reason})") from error

    def _shown(self, step: int) -> Path:
        path = self._folder / str(step)
        return self._mirror.there(path) if self._mirror else path


def quarantine_unreadable(folder: Path) -> list[Path]:
    """Moves checkpoints whose metrics are no JSON any more, with which none could be opened; where they are now."""
    aside = []
    for path in sorted((folder / "checkpoints").glob("*/metrics/metrics")):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            aside.append(_quarantine(path.parents[1]))
    return aside


def _quarantine(path: Path) -> Path:
    """checkpoints/STEP to damaged_checkpoints/STEP, or STEP.1, STEP.2, ... where an earlier one lies there."""
    folder = path.parent.with_name("damaged_checkpoints")
    folder.mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{n}" for n in itertools.count(1)))
    return path.rename(next(folder / name for name in names if not (folder / name).exists()))


def load_params(folder: Folder, init: Callable[[jax.Array], Params]) -> Params:
    """The best parameters of a finished model, checked against its manifest.

    Args:
      folder: the model's.
      init: the network's `init`; its shapes must be the checkpoint's.

    Raises:
      KdError: if the model is not finished, has other shapes, or its bytes are not those that were written.
    """
    refuse_imported_teacher(folder)
    outputs, path = folder.outputs(), folder.path
    shapes = jax.eval_shape(init, jax.random.key(0))
    dtype = outputs["dtype"] if "dtype" in outputs else "float32"  # of every model before there were others
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
    with _or_redo(), Checkpoints(path, outputs["best_step"]) as checkpoints:
        sizes = checkpoints.param_files(outputs["best_step"])
        for name, size in outputs["files"].items():
            if name not in sizes or sizes[name] != size:
                seen = f"{sizes[name]} bytes" if name in sizes else "missing"
                raise KdError(f"{path}/checkpoints/{name}: {seen}, wanted {size} bytes; redo `{folder.phase} --force`")
        params = checkpoints.params(outputs["best_step"], like)
    if params_digest(params) != outputs["digest"]:
        raise KdError(
            f"{path}: its parameters are not those that were saved (digest differs); redo `{folder.phase} --force`"
        )
    return params


def refuse_imported_teacher(folder: Folder) -> None:
    """Raises KdError for a teacher that is elsewhere, of which there are no parameters; or as Folder.manifest."""
    if folder.manifest()["phase"] == IMPORT_PHASE:
        raise KdError(
            f"{folder.path}: the teacher is elsewhere (`{IMPORT_PHASE}` read what it said), there are no parameters of it "
            "here; take a student, or train the teacher in another --workdir"
        )


def _rest(state: Any) -> dict[str, Any]:
    """All but the model's parameters; orbax takes no empty trees, so adapters only where there are any."""
    rest = {"step": state.step, "key": state.key, "opt_state": state.opt_state}
    return rest | ({"adapters": state.adapters} if state.adapters else {})


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """What orbax fails at it raises as well; the tracebacks in its log would only hide the one line."""
    return "orbax" not in record.pathname


@contextlib.contextmanager
def _or_redo() -> Iterator[None]:
    try:
        yield
    except DamagedCheckpoint as error:
        raise KdError(f"{error}; redo the phase with --force") from error


def _restore_args(like: Any) -> Any:
    return ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))


def _restore_whole(like: Any) -> Any:
    """All of every array on each host, as a numpy array: it may have been spread over devices that are not here."""
    return ocp.args.StandardRestore(jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like))


def _digest(beside: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(beside, sort_keys=True).encode(), digest_size=16).hexdigest()


def _numbers(scalars: list[jax.Array]) -> list[int]:
    return [int(one) for one in jax.device_get(scalars)]


def _metric(metrics: dict[str, float]) -> float:
    return metrics[METRIC]
