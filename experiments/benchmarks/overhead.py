"""Measure the overhead of each backend on one device: the quickstart teacher's step against plain `jax.jit`.

    python experiments/benchmarks/overhead.py --json overhead.json

"bare" is jax.jit of the same step with a donated state, jax.device_put of the batch and jax.device_get of the loss. The
cases take turns in blocks of steps, in a random order for each round. Each step transfers its batch and its loss, as in
training. Figures are medians of the blocks. The placement of a program in memory affects its speed at random, so "bare"
is measured twice: the difference shows the size of this effect.
"""

import argparse
import functools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
from train_step import make_setting

from kd_jax import Batch, ResolvedExperiment, init_state, train_step
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.devices import Devices
from kd_jax.runtime.mesh import Mesh, MeshDevices
from kd_jax.runtime.pmap import PmapDevices
from kd_jax.training.step import state_axes

BLOCK = 10
Block = Callable[[], None]


class TrainingStart(NamedTuple):
    """A training step, its first state, and the names of the state's axes."""

    step: Callable[..., Any]
    state: Any
    axes: Any


def start_training(experiment: ResolvedExperiment) -> TrainingStart:
    """Return the teacher's training step and its first state."""
    recipe = experiment.teacher
    model = recipe.model.build(experiment.tokenizer.vocab_size)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    params = jax.jit(model.init)(jax.random.key(0))
    state = init_state(jax.random.key(1), params, tx)
    step = functools.partial(train_step, model=model, terms=recipe.terms, tx=tx)
    return TrainingStart(step, state, state_axes(state, tx, model.axes(params)))


def bare_block(experiment: ResolvedExperiment, batch: Batch) -> Block:
    """Return a block of steps that uses jax.jit only."""
    step, state, _ = start_training(experiment)
    compiled = jax.jit(step, donate_argnums=0)

    def block() -> None:
        nonlocal state
        for _ in range(BLOCK):
            state, sums = compiled(state, jax.device_put(batch))
            jax.device_get(sums["loss"])

    return block


def backend_block(devices: Devices, experiment: ResolvedExperiment, batch: Batch) -> Block:
    """Return a block of steps that uses a backend, as `fit` does."""
    step, state, axes = start_training(experiment)
    compiled, state = devices.compile_sums(step, donate=True), devices.replicate(state, axes)

    def block() -> None:
        nonlocal state
        for _ in range(BLOCK):
            state, sums = compiled(state, devices.shard(batch))
            jax.device_get(devices.unreplicate(sums)["loss"])

    return block


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    experiment, batch = make_setting("encoder_decoder")
    backends = {"jit": make_devices("jit"), "pmap": PmapDevices(1), "mesh": MeshDevices(Mesh(1, 1, 1))}
    blocks = {"bare": bare_block(experiment, batch), "bare again": bare_block(experiment, batch)}
    blocks |= {name: backend_block(devices, experiment, batch) for name, devices in backends.items()}
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    for block in blocks.values():  # compiles
        block()
    for _ in range(arguments.rounds):
        for name in random.sample(list(blocks), len(blocks)):
            start_time = time.perf_counter()
            blocks[name]()
            seconds[name].append((time.perf_counter() - start_time) / BLOCK)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [{"way": name, "seconds": median, "over_bare": median / medians["bare"]} for name, median in medians.items()]
    for row in rows:
        print(f"{row['way']:10s} {1e3 * row['seconds']:6.1f} ms/step, {row['over_bare']:.3f} x bare")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
