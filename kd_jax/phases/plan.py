"""Before anything long runs: what would a cache cost and keep, or, with devices, does training fit them and scale?"""

import functools
import tempfile
import textwrap
from pathlib import Path

import jax

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.errors import KdError
from kd_jax.evaluation.cache_cost import SAMPLE, signal_costs
from kd_jax.evaluation.roofline import step_figures
from kd_jax.evaluation.step_cost import step_costs
from kd_jax.experiment import ResolvedExperiment
from kd_jax.phases import prepare
from kd_jax.runtime import progress
from kd_jax.runtime.backends import as_mesh
from kd_jax.runtime.chips import find_chip
from kd_jax.runtime.mesh import MeshDevices
from kd_jax.teaching.teacher import Teacher
from kd_jax.training.model import batches, initial_params
from kd_jax.training.step import init_state, state_axes, train_step

STAND_IN_STEPS = 150
NOTE = f"""\
From {SAMPLE} training examples at most. KL lost, nats a token: top-k: KL(full || k exact, the rest spread evenly);
draws: KL(drawn || full), which averages out over tokens (its gradient is unbiased), so it is not to be compared with
top-k's. The hours are without compiling, which takes seconds for each length of rows."""


SCALE_NOTE = """\
All figures are of one device and one step. XLA compiled it for virtual devices of the CPU; an accelerator's compiler
fuses otherwise, so memory and its traffic are estimates. FLOP: of matrix products; collectives: what a ring sends.
Times: at the chip's peak in bfloat16, all three at once; no run is faster."""


def run(
    experiment: ResolvedExperiment, workdir: Workdir | None, devices: int | None = None, kind: str = "", only: str = ""
) -> None:
    """Prints what a cache costs and keeps, or, where `devices` are given, what training does on so many of that kind.

    Raises:
      KdError: as `as_mesh`, or if no model is called `only`.
    """
    if devices is None:
        show_cache(experiment, workdir)
    else:
        show_scale(experiment, workdir, as_mesh(experiment.backend, experiment.mesh, devices), kind, only)


def show_scale(experiment: ResolvedExperiment, workdir: Workdir | None, devices: MeshDevices, kind: str, only: str) -> None:
    """One table: each model's training step on the mesh, had it chips of that kind. Nothing is trained or prepared."""
    if only and only not in experiment.recipes:
        raise KdError(f"--only {only}: no such model; wanted one of {', '.join(experiment.recipes)}")
    prepared = workdir is not None and workdir.data.finished() and workdir.data.inputs() == prepare.inputs(experiment)
    vocab_size = workdir.data.outputs()["vocab_size"] if prepared else experiment.tokenizer.vocab_size
    names = [name for name, recipe in experiment.recipes.items() if recipe.training.steps and only in ("", name)]
    if not names:
        raise KdError(f"{only or 'training'}: 0 steps; wanted a model that is trained")
    with progress.bar(f"plan: {devices.shape}", len(names)) as bar:
        columns = []
        for name in names:
            with bar.compiling(name):
                columns.append(step_figures(experiment, name, vocab_size, devices, find_chip(kind)))
            bar.advance(1)
    head = (f"{devices.devices} x {kind}", *names)
    rows = [(title, *(column[title] for column in columns)) for title in columns[0]]
    progress.print_result("\n" + progress.format_table(head, rows))
    progress.print_result(f"{devices.shape}; a vocabulary of {vocab_size}.\n{SCALE_NOTE}")
    if devices.devices > find_chip(kind).interconnect_domain:
        progress.print_result(
            f"The interconnect joins {find_chip(kind).interconnect_domain} of these chips; beyond them is a slower network, "
            "so collectives take longer than is said here."
        )


def show_cache(experiment: ResolvedExperiment, workdir: Workdir | None) -> None:
    """Two tables: what a signal costs and keeps, and what a student's step costs with and without it.

    The workdir is left as it is: what it lacks is made in a temporary folder. Where the teacher is not trained
    yet, one of a few steps stands in; a better teacher is surer, so its top k cover more.
    """
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if workdir is None or not workdir.data.finished() or workdir.data.inputs() != prepare.inputs(experiment):
            workdir = Workdir(scratch / "run")
            prepare.run(experiment, workdir)
        teacher = Teacher(experiment, workdir)
        if not workdir.model(TEACHER).finished():
            _stand_in(teacher)
        head = ("signal", "bytes/token", "whole cache", "hours to write", "covered", "KL lost")
        rows = [
            (c.title, f"{c.bytes_per_token:.1f}", f"{c.bytes / 2**20:,.1f} MiB", f"{c.hours:.3f}")
            + (f"{c.covered:.2%}" if c.title.startswith("top") else f"{c.covered:.1f} ids", f"{c.lost:.4f}")
            for c in signal_costs(teacher, scratch)
        ]
        progress.print_result("\n" + progress.format_table(head, rows))
        progress.print_result(textwrap.fill(NOTE, 80) + "\n")
        if not experiment.students:
            return
        student, recipe = next(iter(experiment.students.items()))
        costs = step_costs(experiment, teacher, recipe)
        rows = [
            (
                c.title,
                f"{1e3 * c.seconds:.1f} ms",
                f"{c.seconds / costs[0].seconds:.2f} x",
                f"{c.memory / 2**20:,.1f} MiB",
            )
            for c in costs
        ]
        progress.print_result(progress.format_table(("student step", "time", "of ce", "memory"), rows))
        progress.print_result(f"{student}'s network, a batch of the longest bucket; a cache of the top 32.")


def _stand_in(teacher: Teacher) -> None:
    """Gives an untrained teacher its first parameters, or, where they are drawn, what a few batches leave of them."""
    experiment, devices, recipe = teacher.experiment, teacher.devices, teacher.experiment.teacher
    if recipe.init.origin != "chance":
        params = initial_params(experiment, teacher.workdir, recipe)
        teacher.params = devices.replicate(params, teacher.model.axes(params))
        return
    train, _, _ = batches(experiment, teacher.workdir, recipe, {}, devices)
    params = jax.jit(lambda key: teacher.model.stack(teacher.model.init(key)))(jax.random.key(experiment.seed))
    steps = min(STAND_IN_STEPS, recipe.training.steps)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    parts = {"model": teacher.model, "terms": recipe.terms, "tx": tx}
    step = devices.compile_sums(functools.partial(train_step, **parts), donate=True)
    state, iterator = init_state(jax.random.key(experiment.seed), params, tx), iter(train)
    state = devices.replicate(state, state_axes(state, tx, teacher.model.axes(params)))
    with progress.bar("plan: a stand-in for the teacher, which is not trained yet", steps) as bar:
        for _ in range(steps):
            state, sums = step(state, devices.shard(next(iterator)), None)
            bar.advance(1, loss=float(jax.device_get(devices.unreplicate(sums["loss"])).mean()))
    teacher.params = state.params
