"""Orbax checkpoints: the best and the last of a training run, and parameters that link the phases."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from kd_jax.artifacts.manifest import ELSEWHERE, Folder
from kd_jax.errors import KdError
from kd_jax.types import Params

METRIC = "valid_cross_entropy"
SPARE = 2**20  # bytes that a checkpoint takes beside its arrays


def params_digest(params: Params) -> str:
    """A digest of every parameter's name, shape, dtype and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one run, under folder/checkpoints; orbax commits each by rename."""

    def __init__(self, folder: Path):
        keep = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(n=1), checkpoint_managers.BestN(get_metric_fn=_metric, reverse=True, n=1)]
        )
        self._folder = (folder / "checkpoints").absolute()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep, best_fn=_metric, best_mode="min", cleanup_tmp_directories=True
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()

    def last(self) -> int | None:
        """The newest checkpoint's step."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the lowest validation cross-entropy."""
        return self._manager.best_step()

    def files(self, step: int) -> dict[str, int]:
        """Size in bytes of every file of a checkpoint's parameters, by its path below checkpoints/."""
        files = (path for path in sorted((self._folder / str(step) / "params").rglob("*")) if path.is_file())
        return {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in files}

    def save(self, state: Any, iterator: dict[str, Any], valid_cross_entropy: float) -> None:
        """Saves a training.step.TrainState with its step's number; writing goes on in the background.

        Raises:
          KdError: if the disk has no room for it.
        """
        needed = SPARE + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise KdError(
                f"no space left for a checkpoint in {self._folder}: {free >> 20} MiB free, {needed >> 20} MiB wanted; "
                "free some and run the same command again"
            )
        step = int(jax.device_get(state.step))
        rest = _rest(state)
        items = {
            "params": ocp.args.StandardSave(state.params),
            "rest": ocp.args.StandardSave(rest),
            "iterator": ocp.args.JsonSave(iterator),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), metrics={METRIC: valid_cross_entropy})

    def wait(self) -> None:
        """Until all that was saved is on disk."""
        self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The newest state, in the shape of `like`, and the iterator's state.

        Raises:
          KdError: if the checkpoint cannot be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, (like.params, _rest(like)))
        items = {
            "params": ocp.args.StandardRestore(abstract[0]),
            "rest": ocp.args.StandardRestore(abstract[1]),
            "iterator": ocp.args.JsonRestore(),
        }
        step = self.last()
        restored = self._restored(step, items)
        return like._replace(params=restored["params"], **restored["rest"]), restored["iterator"]

    def restore_params(self, step: int, like: Params) -> Params:
        """The parameters alone, at `step`.

        Raises:
          KdError: if the checkpoint cannot be read.
        """
        items = {"params": ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))}
        return self._restored(step, items)["params"]

    def _restored(self, step: int, items: dict[str, Any]) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax raises whatever its parts raise, a plain Exception among them
            reason = " ".join(str(error).split())[:200]
            raise KdError(
                f"checkpoint {self._folder / str(step)} cannot be read ({reason}); delete that folder to go on from an "
                "older one, or redo the phase with --force"
            ) from error


def load_params(folder: Folder, init: Callable[[jax.Array], Params]) -> Params:
    """The best parameters of a finished model, checked against its manifest.

    Args:
      folder: the model's.
      init: the network's `init`; its shapes must be the checkpoint's.

    Raises:
      KdError: if the model is not finished, has other shapes, or its bytes are not those that were written.
    """
    refuse_elsewhere(folder)
    outputs, path = folder.outputs(), folder.path
    shapes = jax.eval_shape(init, jax.random.key(0))
    dtype = outputs["dtype"] if "dtype" in outputs else "float32"  # of every model before there were others
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
    with Checkpoints(path) as checkpoints:
        sizes = checkpoints.files(outputs["best_step"])
        for name, size in outputs["files"].items():
            if name not in sizes or sizes[name] != size:
                seen = f"{sizes[name]} bytes" if name in sizes else "missing"
                raise KdError(f"{path}/checkpoints/{name}: {seen}, wanted {size} bytes; redo `{folder.phase} --force`")
        params = checkpoints.restore_params(outputs["best_step"], like)
    if params_digest(params) != outputs["digest"]:
        raise KdError(
            f"{path}: its parameters are not those that were saved (digest differs); redo `{folder.phase} --force`"
        )
    return params


def refuse_elsewhere(folder: Folder) -> None:
    """Raises KdError for a teacher that is elsewhere, of which there are no parameters; or as Folder.manifest."""
    if folder.manifest()["phase"] == ELSEWHERE:
        raise KdError(
            f"{folder.path}: the teacher is elsewhere (`{ELSEWHERE}` read what it said), there are no parameters of it "
            "here; take a student, or train the teacher in another --workdir"
        )


def _rest(state: Any) -> dict[str, Any]:
    """All but the model's parameters; orbax takes no empty trees, so adapters only where there are any."""
    rest = {"step": state.step, "key": state.key, "opt_state": state.opt_state}
    return rest | ({"adapters": state.adapters} if state.adapters else {})


def _metric(metrics: dict[str, float]) -> float:
    return metrics[METRIC]
