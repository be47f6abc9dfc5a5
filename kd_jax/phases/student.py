"""Train the students from what the teacher left in files; no teacher is in memory while they train."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.artifacts import manifest
from kd_jax.data.store import Store
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, Recipe, cache_folder, data_folder
from kd_jax.models.init import FromCheckpoint, FromTeacher
from kd_jax.objective.terms import cached_signals, check_readable, needs_teacher
from kd_jax.training.model import train_model


def run(experiment: Experiment, workdir: Path, force: bool = False, only: str = "") -> None:
    """Trains every student, or the one called `only`, into workdir/students/NAME.

    Raises:
      KdError: if there is no such student, or the teacher or a cache that it needs is missing.
    """
    if only and only not in experiment.students:
        near = difflib.get_close_matches(only, experiment.students, 1, 0.0)
        raise KdError(f"--only {only}: no such student; did you mean {' '.join(near)}?")
    for name in [only] if only else experiment.students:
        recipe = experiment.students[name]
        consumed, payloads = {}, {}
        teacher = None
        if isinstance(recipe.init, FromTeacher) or needs_teacher(recipe.terms) or recipe.targets:
            teacher = consumed["teacher"] = manifest.read(workdir / "teacher", "teacher")["outputs"]["digest"]
        if recipe.targets:
            made = manifest.read(data_folder(workdir, recipe.targets), "cache")
            _check_source(f"targets {recipe.targets.name}", made["inputs"], {"teacher": teacher})
            consumed["targets"] = made["outputs"]["digest"]
        if isinstance(recipe.init, FromCheckpoint):
            consumed["checkpoint"] = manifest.read(Path(recipe.init.folder), "teacher")["outputs"]["digest"]
        for signal, wanted in cached_signals(recipe.terms).items():
            folder = cache_folder(workdir, recipe.targets, signal)
            made = manifest.read(folder, "cache")
            _check_source(f"cache {signal}", made["inputs"], present(workdir, recipe, consumed))
            payloads[signal] = Store(folder, "records")
            data = manifest.read(workdir / "data", "prepare")["outputs"]
            check_readable(signal, wanted, data["vocab_size"], payloads[signal].schema)
            consumed[f"cache.{signal}"] = made["outputs"]["digest"]
        train_model(
            "student",
            f"students.{name}",
            recipe,
            experiment,
            workdir,
            workdir / "students" / name,
            consumed=consumed,
            payloads=payloads,
            force=force,
        )


def present(workdir: Path, recipe: Recipe, consumed: Mapping[str, str]) -> dict[str, str]:
    """Digests of what a cache must have been made from: the teacher, the split and the tokeniser that are here."""
    data = manifest.read(workdir / "data", "prepare")["outputs"]
    split = consumed["targets"] if recipe.targets else data["splits"]["train"]
    teacher = manifest.read(workdir / "teacher", "teacher")["outputs"]["digest"]
    return {"teacher": teacher, "split": split, "tokenizer": data["tokenizer"]}


def _check_source(what: str, inputs: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """Raises KdError if something was made from another teacher, split or tokeniser."""
    for name, digest in wanted.items():
        seen = inputs[f"consumed.{name}"]
        if seen != digest:
            raise KdError(
                f"{what}: made with {name} {seen}, this run's is {digest}; write it again with `cache --force`"
            )
