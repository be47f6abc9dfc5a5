"""From the command line's words to an experiment, and from a workdir back to it: the only tyro import."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from kd_jax import config
from kd_jax.artifacts import manifest
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, Recipe
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.init import FromTeacher, layer_maps
from kd_jax.objective import terms as objective
from kd_jax.parallel.base import BACKENDS
from kd_jax.signals.features import AttentionRelations


def resolve(path: str, overrides: Sequence[str]) -> Experiment:
    """The experiment of a file, with fields replaced.

    Args:
      path: the experiment's file.
      overrides: such as ["--teacher.training.steps", "500"]; typed by the fields they replace.

    Raises:
      KdError: for an unknown field (with the nearest name) or a value of the wrong type.
      SystemExit: with code 0 after --help.
    """
    experiment = config.load(path)
    if not isinstance(experiment, Experiment):
        raise KdError(f"config {path}: `experiment` is {type(experiment).__name__}; wanted an Experiment")
    said = io.StringIO()
    wanted_help = bool({"-h", "--help"} & set(overrides))
    try:
        with contextlib.redirect_stderr(sys.stderr if wanted_help else said):
            resolved = tyro.cli(
                Experiment,
                prog=f"python -m kd_jax run {path} --workdir DIR",
                default=experiment,
                args=list(overrides),
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise KdError(_in_one_line(said.getvalue())) from stop
    check(resolved)
    return resolved


def _in_one_line(panel: str) -> str:
    """The message of tyro's panel: its first paragraph and the nearest names, without the help texts."""
    lines = [line.strip() for line in panel.splitlines() if line.strip(" -─╭╮╰╯│")]
    said = []
    for line in lines[1:]:
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        said.append(line)
    meant = [line.split()[0] for line in said if line.startswith("--")]
    message = " ".join(said[:2] if said and said[0].endswith("argument") else said[:1]) or "unreadable options"
    return message + (f"; did you mean {' or '.join(meant[:2])}?" if meant else "")


def check(experiment: Experiment) -> None:
    """Refuses, before any work is done, what a later phase would refuse.

    Raises:
      KdError: names the field.
    """
    buckets = experiment.buckets
    if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
        raise KdError(f"buckets: {buckets}; wanted padded lengths in ascending order, such as 12 20 32")
    if experiment.backend not in BACKENDS:
        raise KdError(f"backend: {experiment.backend!r}; wanted one of {', '.join(BACKENDS)}")
    evaluation = experiment.evaluation
    if evaluation.split not in ("validation", "test"):
        raise KdError(f"evaluation.split: {evaluation.split!r}; wanted validation or test")
    for field, least in (("batch_size", 1), ("beam", 1), ("bootstrap", 2), ("speed_sentences", 1), ("samples", 1)):
        if vars(evaluation)[field] < least:
            raise KdError(f"evaluation.{field}: {vars(evaluation)[field]}; wanted at least {least}")
    for name in experiment.students:
        if name == "teacher" or "/" in name:
            raise KdError(f"students: {name!r} cannot be a student's name; take another")
    for name, recipe in {"teacher": experiment.teacher, **experiment.students}.items():
        try:
            _check_recipe(recipe, experiment.teacher.model, experiment.tokenizer.vocab_size)
        except KdError as error:
            raise KdError(f"{name}: {error}") from error


def _check_recipe(recipe: Recipe, teacher: EncoderDecoder, vocab_size: int) -> None:
    training = recipe.training
    for field in ("steps", "tokens_per_batch", "microbatches", "eval_every"):
        if vars(training)[field] < 1:
            raise KdError(f"training.{field}: {vars(training)[field]}; wanted at least 1")
    recipe.model.build(vocab_size)
    training.optimizer.rate(training.steps)
    objective.check(recipe.terms, vocab_size)
    for name, term in objective.feature_terms(recipe.terms).items():
        _check_layers(f"terms.{name}.signal", term.signal, recipe.model, teacher)
    if recipe.targets:
        recipe.targets.check()
    if isinstance(recipe.init, FromTeacher):
        layer_maps(recipe.init, teacher, recipe.model)


def _check_layers(field: str, signal: Any, student: EncoderDecoder, teacher: EncoderDecoder) -> None:
    """Refuses layers that student or teacher lack, and relation heads that do not divide a width."""
    if signal.stack not in ("encoder", "decoder") or not signal.layers:
        raise KdError(f"{field}: stack {signal.stack!r}, layers {signal.layers}; wanted encoder or decoder, and pairs")
    for ours, theirs in signal.layers:
        for layer, model, whose in ((ours, student, "student"), (theirs, teacher, "teacher")):
            depth = vars(model)[f"{signal.stack}_layers"]
            if not 0 <= layer < depth:
                raise KdError(f"{field}.layers: {layer}; the {whose}'s {signal.stack} has 0 to {depth - 1}")
    if isinstance(signal, AttentionRelations):
        if not signal.kinds or set(signal.kinds) - set("qkv"):
            raise KdError(f"{field}.kinds: {signal.kinds}; wanted some of q, k, v")
        for model in (student, teacher):
            if signal.heads < 1 or model.d_model % signal.heads:
                raise KdError(f"{field}.heads: {signal.heads}; wanted a divisor of d_model = {model.d_model}")


def remember(workdir: Path, path: str, overrides: Sequence[str], experiment: Experiment) -> None:
    """Keeps the experiment's file and the overrides, so that `generate` needs the workdir alone."""
    manifest.write_text(workdir / "experiment.py", Path(path).read_text(encoding="utf-8"))
    manifest.write_json(workdir / "overrides.json", list(overrides))
    manifest.write_text(workdir / "experiment.txt", config.to_text(experiment))


def recall(workdir: Path) -> Experiment:
    """The experiment that a workdir was made by.

    Raises:
      KdError: if the folder holds no run.
    """
    path = workdir / "experiment.py"
    if not path.exists():
        raise KdError(
            f"--workdir {workdir}: holds no run; make one with `python -m kd_jax run CONFIG --workdir {workdir}`"
        )
    return resolve(str(path), json.loads((workdir / "overrides.json").read_text()))


def share_compiled_programs() -> None:
    """Compiled programs outlive the process, so that phases and reruns share them."""
    folder = os.environ["KD_JAX_CACHE"] if "KD_JAX_CACHE" in os.environ else "~/.cache/kd_jax/xla"
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
