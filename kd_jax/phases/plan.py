"""Estimate costs before anything long runs: of a cache, or of training on many devices."""

import functools
import tempfile
import textwrap
from pathlib import Path

import jax
import numpy as np

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.buckets import padding_warning
from kd_jax.errors import KdError
from kd_jax.evaluation.cache_cost import SAMPLE, signal_costs
from kd_jax.evaluation.roofline import step_figures
from kd_jax.evaluation.step_cost import step_costs
from kd_jax.experiment import ResolvedExperiment
from kd_jax.phases import prepare
from kd_jax.provenance import check_model
from kd_jax.runtime import progress
from kd_jax.runtime.backends import as_mesh
from kd_jax.runtime.chips import find_chip
from kd_jax.runtime.mesh import MeshDevices
from kd_jax.students.init import Random
from kd_jax.teaching.teacher import Teacher
from kd_jax.training.model import batches, initial_params
from kd_jax.training.step import init_state, state_axes, train_step

STAND_IN_STEPS = 150
CACHE_NOTE = f"""\
From at most {SAMPLE} training examples. KL lost, in nats per token: for top-k, KL(full || k exact, the rest spread
evenly); for draws, KL(drawn || full), which averages out over tokens (its gradient is unbiased): not comparable.
Hours exclude compilation, which takes seconds for each row length."""
SCALE_NOTE = """\
All figures are of one device and one step, compiled by XLA for virtual CPU devices. Memory and its traffic are
estimates, since an accelerator's compiler fuses differently. FLOP: of matrix products. Collectives: bytes sent in a
ring. Times: at the chip's peak in bfloat16, all three overlapped; no run is faster. Attention in blocks stands in
for a chip's kernel: neither has scores of all pairs of tokens in memory."""


def run(
    experiment: ResolvedExperiment, workdir: Workdir | None, devices: int = 0, kind: str = "", only: str = ""
) -> None:
    """Print what a cache costs and keeps, or, with `devices`, what a training step costs on so many.

    Args:
      experiment: the resolved experiment.
      workdir: a run whose data and teacher are used; None to prepare them in a temporary folder.
      devices: number of devices to plan for; 0 plans the cache.
      kind: the devices' kind, one of runtime.chips.CHIPS.
      only: with `devices`, a model's name; "" for all.

    Raises:
      KdError: if there is no such model, or the experiment's backend and mesh do not suit so many devices.
    """
    if not devices:
        show_cache(experiment, workdir)
    else:
        show_scale(experiment, workdir, as_mesh(experiment.backend, experiment.mesh, devices), kind, only)


def show_scale(
    experiment: ResolvedExperiment, workdir: Workdir | None, devices: MeshDevices, kind: str, only: str
) -> None:
    """Print a table of each model's training step on a mesh of chips of that kind; train and prepare nothing."""
    if only and only not in experiment.recipes:
        raise KdError(f"--only: expected one of {', '.join(experiment.recipes)}, got {only}.")
    vocab_size = experiment.tokenizer.vocab_size
    if workdir is not None and workdir.data.finished() and workdir.data.inputs() == prepare.inputs(experiment):
        vocab_size = workdir.data.outputs()["vocab_size"]
    names = [name for name, recipe in experiment.recipes.items() if recipe.training.steps and only in ("", name)]
    if not names:
        raise KdError(f"{only or 'training'}.training.steps: expected at least 1 to plan for, got 0.")
    with progress.bar(f"plan: {devices.shape}", len(names)) as bar:
        columns = []
        for name in names:
            with bar.compiling(name):
                columns.append(step_figures(experiment, name, vocab_size, devices, find_chip(kind)))
            bar.advance(1)
    head = (f"{devices.devices} x {kind}", *names)
    rows = [(title, *(column[title] for column in columns)) for title in columns[0]]
    progress.print_result("\n" + progress.format_table(head, rows))
    progress.print_result(f"{devices.shape}; vocabulary of {vocab_size}.\n{SCALE_NOTE}")
    for name in names:
        recipe = experiment.recipes[name]
        length = int(recipe.model.layout(0).sizes(np.asarray(experiment.shapes[-1]))[-1])
        field = name if name == TEACHER else f"students.{name}"
        divisor = devices.count * recipe.training.microbatches
        if warning := padding_warning(field, recipe.training.tokens_per_batch, length, divisor):
            progress.print_result(f"warning: {warning}")
    if devices.devices > find_chip(kind).interconnect_domain:
        progress.print_result(
            f"The interconnect joins {find_chip(kind).interconnect_domain} of these chips; beyond them the network is "
            "slower, so collectives take longer than these figures."
        )


def show_cache(experiment: ResolvedExperiment, workdir: Workdir | None) -> None:
    """Print two tables: cost and coverage of each signal, and cost of a student's step with and without it.

    The workdir does not change: missing data is prepared in a temporary folder. A teacher of a few steps stands in for
    one that is not trained yet; a better teacher is more confident, so its top k cover more.
    """
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if workdir is None or not workdir.data.finished() or workdir.data.inputs() != prepare.inputs(experiment):
            workdir = Workdir(scratch / "run")
            prepare.run(experiment, workdir)
        teacher = Teacher(experiment, workdir)
        if workdir.model(TEACHER).finished():
            check_model(experiment, workdir, TEACHER)
        else:
            _train_stand_in(teacher)
        head = ("signal", "bytes/token", "whole cache", "hours to write", "covered", "KL lost")
        rows = [
            (
                cost.title,
                f"{cost.bytes_per_token:.1f}",
                f"{cost.bytes / 2**20:,.1f} MiB",
                f"{cost.hours:.3f}",
                f"{cost.covered:.2%}" if cost.title.startswith("top") else f"{cost.covered:.1f} ids",
                f"{cost.lost:.4f}",
            )
            for cost in signal_costs(teacher, scratch)
        ]
        progress.print_result("\n" + progress.format_table(head, rows))
        progress.print_result(textwrap.fill(CACHE_NOTE, 80) + "\n")
        if not experiment.students:
            return
        student, recipe = next(iter(experiment.students.items()))
        costs = step_costs(experiment, teacher, recipe)
        rows = [
            (
                cost.title,
                f"{1e3 * cost.seconds:.1f} ms",
                f"{cost.seconds / costs[0].seconds:.2f} x",
                f"{cost.memory / 2**20:,.1f} MiB",
            )
            for cost in costs
        ]
        progress.print_result(progress.format_table(("student step", "time", "of ce", "memory"), rows))
        progress.print_result(f"{student}'s network, a batch of the longest bucket, a cache of the top 32.")


def _train_stand_in(teacher: Teacher) -> None:
    """Give an untrained teacher its first parameters; train random ones for a few steps."""
    experiment, devices, recipe = teacher.experiment, teacher.devices, teacher.experiment.teacher
    if not isinstance(recipe.init, Random):
        params = initial_params(experiment, teacher.workdir, recipe)
        teacher.params = devices.replicate(params, teacher.model.axes(params))
        return
    train, _, _ = batches(experiment, teacher.workdir, recipe, {}, devices)
    params = jax.jit(lambda key: teacher.model.stack(teacher.model.init(key)))(jax.random.key(experiment.seed))
    steps = min(STAND_IN_STEPS, recipe.training.steps)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    step = devices.compile_sums(
        functools.partial(train_step, model=teacher.model, terms=recipe.terms, tx=tx), donate=True
    )
    state, iterator = init_state(jax.random.key(experiment.seed), params, tx), iter(train)
    state = devices.replicate(state, state_axes(state, tx, teacher.model.axes(params)))
    with progress.bar("plan: a short-trained teacher, since none is trained yet", steps) as bar:
        for _ in range(steps):
            state, sums = step(state, devices.shard(next(iterator)), None)
            bar.advance(1, loss=float(jax.device_get(devices.unreplicate(sums["loss"])).mean()))
    teacher.params = state.params
